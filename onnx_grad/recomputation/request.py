"""What a caller asks to be recomputed, and which values that means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.errors import InputError, UnknownNameError
from onnx_grad.memory.sizes import check_sizes
from onnx_grad.path import node_label
from onnx_grad.recomputation.budget import fit
from onnx_grad.recomputation.checkpoints import interior
from onnx_grad.recomputation.rematerialize import rematerialize
from onnx_grad.recomputation.walk import BackwardPass
from onnx_grad.repeatable import obstacle

Recompute: TypeAlias = "Sequence[str] | Literal['sqrt'] | int"

# What a dimension counts that is not known, where only the proportions of tensors matter.
_UNKNOWN_DIMENSION = 64


@dataclass(frozen=True)
class Recomputation:
    """A request.

    Attributes:
        of: Names of tensors, `"sqrt"`, or the bytes that activations may take.
        sizes: What the symbols in the shapes of the graph's inputs stand for.
    """

    of: Recompute
    sizes: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not (_is_budget(self.of) or _are_names(self.of)):
            raise InputError(
                f"recompute: {self.of!r} is no budget; give a positive whole number of bytes, 'sqrt', or a "
                "list of names of tensors"
            )

    @classmethod
    def asked(cls, of: Recompute | None, sizes: Mapping[str, int] | None) -> Recomputation | None:
        """The request, if there is one.

        Raises:
            InputError: It is no number of bytes that can be; or there are sizes, but no request.
        """
        if of is not None:
            return cls(of, sizes)
        if sizes is not None:
            raise InputError("sizes: they are what recompute reckons with; give recompute=… too")
        return None

    def apply(self, model: ir.Model, walk: BackwardPass) -> None:
        """Let the backward pass `walk` of `model`, whose shapes are inferred, recompute what is asked for.

        Raises:
            UnknownNameError: A name is not a tensor of the model.
            InputError: A tensor that is named cannot be computed twice; or the budget cannot be met, or told
                whether it is met.
        """
        check_sizes(self.sizes or {}, walk.graph.inputs)
        if isinstance(self.of, int):
            dropped = fit(model, walk, self.of, self.sizes, self._size)
        elif self.of == "sqrt":
            dropped = interior(walk, max(1, round(math.sqrt(len(walk.kept)))), self._size)
        else:
            dropped = _named(walk, [self.of] if isinstance(self.of, str) else self.of)
        rematerialize(walk, dropped)

    def _size(self, value: ir.Value) -> float:
        """The bytes of `value`, roughly where its shape is not known."""
        dims = known.dimensions(value)
        if dims is None:
            dims = (_UNKNOWN_DIMENSION,) * 2
        given = self.sizes or {}
        lengths = (d if isinstance(d, int) else given.get(str(d.value), _UNKNOWN_DIMENSION) for d in dims)
        width = 32 if value.dtype is None or value.dtype is ir.DataType.STRING else value.dtype.bitwidth
        return math.prod(lengths) * width / 8


def _is_budget(of: object) -> bool:
    return isinstance(of, int) and not isinstance(of, bool) and of > 0


def _are_names(of: object) -> bool:
    return isinstance(of, Sequence) and all(isinstance(name, str) for name in of)


def _named(walk: BackwardPass, names: Sequence[str]) -> set[ir.Value]:
    values = {value.name: value for node in walk.forward for value in node.outputs if value.name}
    always_there = {value.name for value in (*walk.graph.inputs, *walk.graph.initializers.values())}
    found = set()
    for name in names:
        if name in always_there:
            continue
        if name not in values:
            raise UnknownNameError.near("recompute", name, values)
        value = values[name]
        node = value.producer()
        reason = None if node is None else obstacle(node)
        if node is not None and reason is not None:
            raise InputError(
                f"recompute: '{name}', of node '{node_label(node)}', cannot be computed again: {reason}; "
                "leave it out, and it is kept for the backward pass"
            )
        if value in walk.activations:
            found.add(value)
    return found
