"""A point to check at: the inputs that were given, and random ones for the rest."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.errors import InputError, UnknownNameError
from onnx_grad.signature import (
    Bound,
    Dimension,
    InputSpec,
    as_array,
    check_names,
    dtype_name,
    dtype_of,
    quoted,
)

Array: TypeAlias = np.ndarray[Any, Any]
Range: TypeAlias = tuple[int, int]

DEFAULT_INTEGER_RANGE: Range = (0, 2)
SMALLEST_DEFAULT_SIZE = 2

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def complete_inputs(
    specs: Sequence[InputSpec],
    given: Mapping[str, Any],
    dims: Mapping[str, int],
    integer_ranges: Mapping[str, Range],
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The value of every required input: what was given, checked, and random numbers for the rest.

    Floats are standard normal, booleans fair coins, integers uniform over the half-open range of their
    input. A symbolic dimension has the size in `dims`, else the one that a given input fixes, else a small
    size of its own: 2 for the first symbol, 3 for the second and so on, so that mixed-up dimensions show. A
    dimension without a name is 2.

    Args:
        specs: The inputs of the model.
        given: Arrays by input name.
        dims: Sizes by symbol.
        integer_ranges: For integer inputs, the half-open range by input name; 0 and 1 where none is given.
        generator: Source of the random numbers.

    Raises:
        InputError: An array does not fit its input, or an input cannot be made up.
        UnknownNameError: `dims` or `integer_ranges` name something that the model does not have.
    """
    check_names("input", given, [spec.name for spec in specs])
    _check_symbols(specs, dims)
    _check_ranges(specs, integer_ranges)
    bound = {symbol: Bound(size, "dims") for symbol, size in dims.items()}
    inputs: dict[str, Any] = {}
    for spec in specs:
        if spec.name in given:
            inputs[spec.name] = _checked(spec, given[spec.name], bound)
    missing = [spec for spec in specs if spec.required and spec.name not in inputs]
    for symbol, spec in _symbols(missing):
        _size(symbol, bound, spec.name)
    for spec in missing:
        shape = _shape(spec, bound)
        bounds = integer_ranges.get(spec.name, DEFAULT_INTEGER_RANGE)
        inputs[spec.name] = _random(spec, shape, bounds, generator)
    return {spec.name: inputs[spec.name] for spec in specs if spec.name in inputs}


def _checked(spec: InputSpec, value: Any, bound: dict[str, Bound]) -> Any:
    if not spec.is_tensor:
        return value
    array = as_array(spec, value)
    spec.check(dtype_of(array), array.shape, bound)
    return array


def _shape(spec: InputSpec, bound: dict[str, Bound]) -> tuple[int, ...]:
    if not spec.is_tensor or spec.shape is None or spec.dtype is None:
        what = f"is declared as {spec}" if spec.is_tensor else "is no tensor"
        raise InputError(
            f"input '{spec.name}' {what}, so that no value can be made up for it; "
            f"give one with inputs={{'{spec.name}': …}}"
        )
    return tuple(_size(dim, bound, spec.name) for dim in spec.shape)


def _size(dim: Dimension, bound: dict[str, Bound], source: str) -> int:
    if dim is None:
        return SMALLEST_DEFAULT_SIZE
    if isinstance(dim, int):
        return dim
    if dim not in bound and not dim.isidentifier():
        value = _evaluated(dim, {symbol: known.size for symbol, known in bound.items()})
        if value is not None:
            return value
    taken = {known.size for known in bound.values()}
    free = SMALLEST_DEFAULT_SIZE
    while free in taken:
        free += 1
    return bound.setdefault(dim, Bound(free, source)).size


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def _evaluated(text: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a dimension expression such as `s44 - 4`, where all its symbols have sizes."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right):
                return int(_OPERATORS[type(op)](value(left), value(right)))
        raise KeyError(text)

    try:
        size = value(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None
    return size if size >= 0 else None


def _random(spec: InputSpec, shape: tuple[int, ...], bounds: Range, generator: np.random.Generator) -> Array:
    dtype = spec.dtype
    assert dtype is not None
    if dtype in _FLOATS:
        return generator.standard_normal(shape).astype(dtype.numpy())
    if dtype is ir.DataType.BOOL:
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.is_integer():
        return generator.integers(*bounds, shape).astype(dtype.numpy())
    raise InputError(
        f"input '{spec.name}' is of type {dtype_name(dtype)}, for which no values are made up; "
        f"give it with inputs={{'{spec.name}': …}}"
    )


def _check_symbols(specs: Sequence[InputSpec], dims: Mapping[str, int]) -> None:
    names = {symbol for symbol, _ in _symbols(specs)}
    names |= {dim for spec in specs for dim in spec.shape or () if isinstance(dim, str)}
    for symbol, size in dims.items():
        if symbol not in names:
            raise UnknownNameError(
                f"dims: no input has a dimension '{symbol}'; there are: {quoted(sorted(names))}"
            )
        if size < 0:
            raise InputError(f"dims: dimension '{symbol}' cannot be {size}")


def _symbols(specs: Sequence[InputSpec]) -> Iterator[tuple[str, InputSpec]]:
    """Every symbol in the dimensions of `specs`, also those inside expressions."""
    for spec in specs:
        for dim in spec.shape or ():
            if isinstance(dim, str):
                yield from ((symbol, spec) for symbol in _symbols_in(dim))


def _symbols_in(dim: str) -> list[str]:
    try:
        tree = ast.parse(dim, mode="eval")
    except SyntaxError:
        return []
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _check_ranges(specs: Sequence[InputSpec], ranges: Mapping[str, Range]) -> None:
    integers = [s.name for s in specs if s.dtype is not None and s.dtype.is_integer()]
    for name, (low, high) in ranges.items():
        if name not in integers:
            raise UnknownNameError(
                f"integer_ranges: there is no integer input '{name}'; there are: {quoted(integers)}"
            )
        if low >= high:
            raise InputError(f"integer_ranges: the range {low}…{high} of '{name}' is empty")
