"""A batch, and the operands of a node as its batching rule sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.extents import Part, concatenated, extents
from onnx_grad.builder import Builder
from onnx_grad.errors import ModelError


@dataclass(frozen=True)
class Batch:
    """The batch axis.

    Attributes:
        size: How many examples there are, or a 1-D int64 value of one element that says so at run time.
        dimension: The same in shapes: a number or a symbol.
    """

    size: int | ir.Value
    dimension: known.Dimension

    def length(self, op: Builder) -> ir.Value:
        """The size as a 1-D int64 value of one element."""
        return op.constant([self.size], ir.DataType.INT64) if isinstance(self.size, int) else self.size

    def shape(self, example: ir.Value) -> ir.Shape | None:
        """The shape of a batch of values that are like `example`, as far as it is known."""
        dims = known.dimensions(example)
        return None if dims is None else ir.Shape([self.dimension, *dims])

    def annotate(self, value: ir.Value, example: ir.Value) -> None:
        """Note of a batched `value` the shape and the type that follow from those of an example."""
        if example.shape is not None:
            value.shape = self.shape(example)
        if example.type is not None:
            value.type = example.type

    def repeated(self, op: Builder, value: ir.Value) -> ir.Value:
        """A batch of examples that are all `value`."""
        rank = known.rank(value)
        rest: list[Part] = extents(value) if rank is None else [1] * rank
        result = op.Expand(value, concatenated(op, [self.size, *rest]))
        self.annotate(result, value)
        return result


class Operands:
    """The operands of one node: batched where they depend on the example, else shared by all of them.

    Attributes:
        batch: The batch axis.
    """

    def __init__(
        self,
        op: Builder,
        node: ir.Node,
        batch: Batch,
        batched: Mapping[ir.Value, ir.Value],
        shared: Mapping[ir.Value, ir.Value],
    ) -> None:
        self.batch = batch
        self._op = op
        self._node = node
        self._batched = batched
        self._shared = shared

    def __len__(self) -> int:
        return len(self._node.inputs)

    def get(self, index: int) -> ir.Value | None:
        """Operand `index`, batched or shared; `None` where it is left out."""
        value = known.optional_operand(self._node, index)
        if value is None:
            return None
        return self._batched.get(value) or self._shared.get(value, value)

    def __getitem__(self, index: int) -> ir.Value:
        value = self.get(index)
        if value is None:
            raise ModelError(
                f"{self._node.op_type} node '{self._node.name}' lacks its required input {index}"
            )
        return value

    def all(self) -> list[ir.Value | None]:
        """All operands, batched or shared."""
        return [self.get(index) for index in range(len(self))]

    def is_batched(self, index: int) -> bool:
        """Whether operand `index` depends on the example."""
        value = known.optional_operand(self._node, index)
        return value is not None and value in self._batched

    def only(self, *indices: int) -> bool:
        """Whether no other operands than these are batched."""
        return not any(self.is_batched(i) for i in range(len(self)) if i not in indices)

    def repeated(self, index: int) -> ir.Value:
        """Operand `index` as a batch in any case: one that is shared is repeated for every example."""
        value = self[index]
        return value if self.is_batched(index) else self.batch.repeated(self._op, value)

    def rank(self, index: int) -> int | None:
        """The rank of operand `index` of one example; `None` where it is unknown."""
        value = known.optional_operand(self._node, index)
        return None if value is None else known.rank(value)
