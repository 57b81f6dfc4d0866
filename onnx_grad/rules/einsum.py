"""Einsum: the cotangent of an operand is an Einsum too, with the roles of the operand and the output swapped.

For `y = Σ a·b·…`, `da = Σ dy·b·…` onto the labels of `a`. Three things are added where needed: a label that
only `a` has is stretched, a label that `a` has twice is put back on the diagonal, and an axis of `a` of
length 1 that was stretched to meet another operand's is summed.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient

_ELLIPSIS = "…"
_UNKNOWN = ir.SymbolicDim(None)

Factor = tuple[str, ir.Value]


@dataclass(frozen=True)
class _Equation:
    """The terms of an equation: a character for each label, and one for an ellipsis of unknown length."""

    inputs: tuple[str, ...]
    output: str

    @classmethod
    def of(cls, node: ir.Node) -> _Equation:
        text = node.attributes["equation"].as_string().replace(" ", "").replace("...", _ELLIPSIS)
        inputs, arrow, output = text.partition("->")
        if not arrow:
            once = sorted(c for c in set(inputs) - {",", _ELLIPSIS} if inputs.count(c) == 1)
            output = _ELLIPSIS * (_ELLIPSIS in inputs) + "".join(once)
        return cls(tuple(inputs.split(",")), output)._with_known_ranks(node)

    def _with_known_ranks(self, node: ir.Node) -> _Equation:
        """Each ellipsis replaced by labels, where the rank of a value that has one is known."""
        for term, value in zip((self.output, *self.inputs), (*node.outputs, *node.inputs), strict=True):
            rank = None if value is None else known.rank(value)
            if _ELLIPSIS in term and rank is not None:
                labels = "".join(itertools.islice(self.unused_labels(), rank + 1 - len(term)))
                inputs = tuple(t.replace(_ELLIPSIS, labels) for t in self.inputs)
                return _Equation(inputs, self.output.replace(_ELLIPSIS, labels))
        return self

    def unused_labels(self) -> Iterator[str]:
        used = set(self.output).union(*self.inputs)
        return (label for label in string.ascii_letters if label not in used)


@gradient("Einsum")
def einsum(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = Σ A·B·…: dA = Σ dY·B·…, summed over the labels that A does not have."""
    equation = _Equation.of(node)
    return [functools.partial(_operand, op, node, equation, dy, i) for i in range(len(node.inputs))]


def _operand(op: Builder, node: ir.Node, equation: _Equation, dy: ir.Value, index: int) -> ir.Value:
    """The cotangent of the operand at `index`."""
    x, y = known.operand(node, index), node.outputs[0]
    term, diagonals = _off_diagonal(op, x, equation, index)
    operands = [(t, v) for t, v in zip(equation.inputs, node.inputs, strict=True) if v is not None]
    factors = [*operands[:index], *operands[index + 1 :], *diagonals]
    spanned = set(equation.output).union(*(t for t, _ in diagonals))
    present = "".join(c for c in term if c in spanned or any(c in t for t, _ in factors))
    result = _contract(op, (equation.output, dy), factors, present)
    if present != term:
        result = op.Unsqueeze(result, [_axis(term, c) for c in term if c not in present])

    own = _dimensions(term, x)
    arrived = _arrived_dimensions(own, [(equation.output, y), *factors])
    if any(c not in spanned and not _covers(arrived[c], own[c]) for c in own):
        result = op.Expand(result, op.shape(x))
        arrived = {c: _stretch(arrived[c], own[c]) for c in own}
    if result is dy:
        return undo_broadcast(op, dy, x, y)
    if x.shape is not None:
        result.shape = ir.Shape(arrived.values())
    return undo_broadcast(op, result, x, result)


def _off_diagonal(op: Builder, x: ir.Value, equation: _Equation, index: int) -> tuple[str, list[Factor]]:
    """The term of `x` with each repetition of a label renamed, and identity matrices that tie the two."""
    unused = equation.unused_labels()
    term, diagonals = "", []
    for label in equation.inputs[index]:
        if label in term:
            twin = next(unused)
            axis = _axis(equation.inputs[index], label)
            diagonals.append((label + twin, _identity_matrix(op, x, axis)))
            label = twin
        term += label
    return term, diagonals


def _identity_matrix(op: Builder, x: ir.Value, axis: int) -> ir.Value:
    """The identity matrix of the length of `axis` of `x`, in the dtype of `x`."""
    length = op.Squeeze(op.Shape(x, start=axis, end=axis + 1 or None), [0])
    indices = op.Range(0, length, 1)
    return op.CastLike(op.Equal(op.Unsqueeze(indices, [1]), indices), x)


def _contract(op: Builder, first: Factor, factors: Sequence[Factor], output: str) -> ir.Value:
    """Einsum of the factors, each after one that it shares a label with: they are contracted in order."""
    chain, rest = [first], list(factors)
    while rest:
        seen = set().union(*(term for term, _ in chain))
        chain.append(rest.pop(max(range(len(rest)), key=lambda i: len(seen.intersection(rest[i][0])))))
    terms, values = zip(*chain, strict=True)
    if terms == (output,):
        return first[1]
    if _ELLIPSIS in output or not any(_ELLIPSIS in term for term in terms):
        return _einsum(op, terms, output, values)
    # An ellipsis cannot be summed within an Einsum.
    unsummed = _einsum(op, terms, _ELLIPSIS + output, values)
    leading = op.Range(0, op.Size(op.Shape(unsummed)) - op.constant(len(output), ir.DataType.INT64), 1)
    return op.ReduceSum(unsummed, leading, keepdims=0, noop_with_empty_axes=1)


def _einsum(op: Builder, terms: Sequence[str], output: str, values: Sequence[ir.Value]) -> ir.Value:
    equation = f"{','.join(terms)}->{output}".replace(_ELLIPSIS, "...")
    return op.Einsum(*values, equation=equation)


def _axis(term: str, label: str) -> int:
    """The axis of a label, counted from the end where it comes after an ellipsis."""
    axis = term.index(label)
    return axis - len(term) if _ELLIPSIS in term[:axis] else axis


def _dimensions(term: str, value: ir.Value) -> dict[str, known.Dimension]:
    """The dimension of each label; that of an ellipsis is left out."""
    dims = known.dimensions(value)
    if dims is None or _ELLIPSIS in term:
        return {label: _UNKNOWN for label in term if label != _ELLIPSIS}
    return dict(zip(term, dims, strict=True))


def _arrived_dimensions(
    own: Mapping[str, known.Dimension], factors: Sequence[Factor]
) -> dict[str, known.Dimension]:
    """The dimension that each label has after contraction: what those of the factors broadcast to."""
    arrived: dict[str, known.Dimension] = dict.fromkeys(own, 1)
    for factor in factors:
        for label, dimension in _dimensions(*factor).items():
            if label in own:
                arrived[label] = _stretch(arrived[label], dimension)
    return arrived


def _covers(arrived: known.Dimension, own: known.Dimension) -> bool:
    """Whether `arrived` is certainly as long as `own` or longer."""
    return own == 1 or known.same_dimension(arrived, own)


def _stretch(a: known.Dimension, b: known.Dimension) -> known.Dimension:
    """The dimension that two broadcast to, as far as it is known."""
    if a == 1 or known.same_dimension(a, b):
        return b
    if b == 1 or isinstance(a, int):
        return a
    return b if isinstance(b, int) else _UNKNOWN
