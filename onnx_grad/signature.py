"""What a model expects of its inputs, and whether given arrays meet it.

The check runs before ONNX Runtime sees the arrays, so that an error names the input, what was expected of it
and what was given.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.errors import InputError

Dimension: TypeAlias = "int | str | None"


@dataclass(frozen=True)
class Bound:
    """The size a dimension symbol stands for, and the input that fixed it."""

    size: int
    source: str


@dataclass(frozen=True)
class InputSpec:
    """What one graph input accepts.

    Attributes:
        name: Name of the graph input.
        dtype: Element type; `None` where the model does not say, or for an input that is no tensor.
        shape: Dimensions: a size, a symbol that is the same size everywhere, or `None` for any size. `None`
            when the rank is not declared.
        is_tensor: False for sequences and optionals, which are handed on unchecked.
        required: False for an input that has a default value (an initializer of the same name).
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[Dimension, ...] | None
    is_tensor: bool = True
    required: bool = True

    @classmethod
    def of(cls, value: ir.Value) -> InputSpec:
        """The specification of a graph input or output."""
        is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
        return cls(
            name=value.name or "",
            dtype=value.dtype if is_tensor else None,
            shape=None if value.shape is None else tuple(map(_dimension, value.shape)),
            is_tensor=is_tensor,
            required=value.const_value is None,
        )

    def __str__(self) -> str:
        dtype = "any type" if self.dtype is None else dtype_name(self.dtype)
        return f"{dtype}{shape_text(self.shape)}"

    def size(self, bound: Mapping[str, Bound]) -> int | None:
        """The number of elements, where the dimensions are known or bound; else `None`."""
        if self.shape is None:
            return None
        sizes = [bound[d].size if isinstance(d, str) and d in bound else d for d in self.shape]
        known = [size for size in sizes if isinstance(size, int)]
        return math.prod(known) if len(known) == len(sizes) else None

    def check(self, dtype: ir.DataType, shape: Sequence[int], bound: dict[str, Bound]) -> None:
        """Check an array against this specification; symbols met for the first time are added to `bound`.

        Raises:
            InputError: The dtype, the rank or a dimension is not what the model expects.
        """
        given = f"{dtype_name(dtype)}{shape_text(shape)}"
        if self.dtype is not None and dtype != self.dtype:
            raise InputError(
                f"input '{self.name}' expects {self}, and {given} was given; "
                f"convert the array with .astype('{dtype_name(self.dtype)}')"
            )
        if self.shape is None:
            return
        if len(shape) != len(self.shape):
            raise InputError(
                f"input '{self.name}' expects {self}, of rank {len(self.shape)}, "
                f"and {given}, of rank {len(shape)}, was given"
            )
        for axis, (expected, size) in enumerate(zip(self.shape, shape, strict=True)):
            if isinstance(expected, str):
                first = bound.setdefault(expected, Bound(size, self.name))
                if first.size != size:
                    raise InputError(
                        f"input '{self.name}' expects {self}, and {given} was given: dimension {axis} is "
                        f"'{expected}', which is {first.size} in input '{first.source}'"
                    )
            elif expected is not None and expected != size:
                raise InputError(
                    f"input '{self.name}' expects {self}, and {given} was given: "
                    f"dimension {axis} must be {expected}"
                )


def check_names(role: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Check that every given name is one of the known ones.

    Raises:
        InputError: A name is unknown; near names are listed.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {quoted(near)}?" if near else f"there are: {quoted(known)}"
            raise InputError(f"there is no {role} '{name}'; {hint}")


def as_array(spec: InputSpec, value: Any) -> np.ndarray[Any, Any]:
    """`value` as an array for the input `spec`.

    An array keeps its dtype. Python numbers and nested lists have none of their own and take the one that is
    expected, as long as no fraction is lost.

    Raises:
        InputError: `value` cannot be made an array, or its numbers do not fit the expected dtype.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"input '{spec.name}' expects {spec}: {error}") from error
    if array.dtype == object and (spec.dtype is not ir.DataType.STRING):
        raise InputError(f"input '{spec.name}' expects {spec}, not {type(value).__name__}")
    if hasattr(value, "dtype") or spec.dtype is None or spec.dtype is ir.DataType.STRING:
        return array
    expected = spec.dtype.numpy()
    if not np.can_cast(array.dtype, expected, "same_kind"):
        raise InputError(f"input '{spec.name}' expects {spec}, and {array.dtype} numbers were given")
    return array.astype(expected)


def dtype_of(array: np.ndarray[Any, Any]) -> ir.DataType:
    """The ONNX element type of `array`.

    Raises:
        InputError: ONNX has no such type.
    """
    if array.dtype.kind in "OUST":
        return ir.DataType.STRING
    try:
        return ir.DataType.from_numpy(array.dtype)
    except TypeError as error:
        raise InputError(f"ONNX has no element type for arrays of {array.dtype}") from error


def dtype_name(dtype: ir.DataType) -> str:
    """The name numpy gives to an ONNX element type: `float32` for `FLOAT`."""
    return "string" if dtype is ir.DataType.STRING else str(dtype.numpy())


def shape_text(shape: Sequence[Dimension] | None) -> str:
    """A shape for people: `[batch, 3, ?]`, or `[…]` when the rank is unknown."""
    if shape is None:
        return "[…]"
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def quoted(names: Iterable[str]) -> str:
    """Names for people: `'a', 'b'`."""
    return ", ".join(f"'{name}'" for name in names) or "none"


def _dimension(dim: int | ir.SymbolicDim) -> Dimension:
    return dim if isinstance(dim, int) else dim.value
