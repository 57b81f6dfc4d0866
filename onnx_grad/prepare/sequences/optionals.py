"""What stands for an optional: whether there is something in it, and what."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.prepare.sequences.forms import Form
from onnx_grad.prepare.sequences.runs import Kind
from onnx_grad.prepare.sequences.sites import Site


@dataclass(frozen=True)
class Option:
    """An optional over tensors.

    Attributes:
        present: Whether there is something in it: known, or a scalar.
        content: What is in it, or of the type of what would be; `None` where nothing ever is.
    """

    present: bool | ir.Value
    content: ir.Value | Form | None

    @property
    def kind(self) -> Kind:
        """What makes two optionals the same but for their tensors."""
        content = self.content.kind if isinstance(self.content, Form) else self.content is not None
        return ("optional", self.present if isinstance(self.present, bool) else "maybe", content)

    def tensors(self) -> list[ir.Value]:
        """The tensors that it is made of."""
        present = [] if isinstance(self.present, bool) else [self.present]
        if isinstance(self.content, Form):
            return [*present, *self.content.tensors()]
        return present if self.content is None else [*present, self.content]

    def of(self, tensors: Sequence[ir.Value], site: Site) -> Option:
        """An optional of the same kind of other tensors."""
        left = iter(tensors)
        present = self.present if isinstance(self.present, bool) else next(left)
        if isinstance(self.content, Form):
            return Option(present, self.content.of(list(itertools.islice(left, None)), site))
        return Option(present, None if self.content is None else next(left))

    def maybe(self, op: Builder, other: Option) -> Option:
        """The same, with a scalar for whether it is present; an empty tensor where only `other` has one."""
        present, content = self.present, self.content
        if isinstance(present, bool):
            present = op.constant(present, ir.DataType.BOOL)
        if content is None and isinstance(other.content, ir.Value) and other.content.dtype is not None:
            content = op.constant(np.zeros([0] * (known.rank(other.content) or 0)), other.content.dtype)
        return Option(present, content)

    def sequence(self, op: Builder, type_: ir.TypeProtocol | None) -> ir.Value:
        """The optional itself."""
        if isinstance(self.present, bool):
            return self._made(op, self.present, type_)
        branches = []
        for present in (True, False):
            inner = op.apart()
            made = self._made(inner, present, type_)
            branches.append(
                ir.Graph([], [made], nodes=inner.nodes, name=op.unique_name(f"{op.scope}/branch"))
            )
        return op.If(self.present, then_branch=branches[0], else_branch=branches[1])

    def _made(self, op: Builder, present: bool, type_: ir.TypeProtocol | None) -> ir.Value:
        if not isinstance(type_, ir.OptionalType):
            raise ValueError("an optional has the type of one")
        if not present or self.content is None:
            made = op.Optional(type=ir.AttrTypeProto("type", ir.TypeAndShape(type_.elem_type, None)).value)
        elif isinstance(self.content, Form):
            made = op.Optional(self.content.sequence(op, type_.elem_type))
        else:
            made = op.Optional(self.content)
        made.type = type_
        return made
