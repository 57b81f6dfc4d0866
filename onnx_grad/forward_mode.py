"""The forward walk: from the tangents of `wrt` to those of `of`, by the rules of the reverse walk.

What an operator gives is linear in the tangents of its operands. Where it is linear in the operands, it is
applied to the tangents itself; else its gradient rule is transposed (`onnx_grad.transposition`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.composition import composed
from onnx_grad.curves import curve_to
from onnx_grad.errors import RuleError
from onnx_grad.liveness import read_values
from onnx_grad.masking import zero_where_zero
from onnx_grad.path import Path, Step, node_label
from onnx_grad.recording import recording
from onnx_grad.registry import Linearity
from onnx_grad.singularities import is_elementwise, may_be_unused_at_singularity
from onnx_grad.transposition import transposed

Tangents = Mapping[ir.Value, ir.Value]
Pair = tuple[ir.Value, ir.Value]


class Push:
    """Pushes tangents forward through one model.

    Args:
        path: The nodes from `wrt` to `of`, none of them blocked.

    Attributes:
        path: The same.
        extended: The nodes of the model whose bodies compute tangents as well now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.extended: list[ir.Node] = []
        self._successors: dict[ir.Value, ir.Value] = {}
        self._predecessors: dict[ir.Value, ir.Value] = {}

    def forward(self, op: Builder, graph: ir.Graph, seeds: Iterable[Pair]) -> dict[ir.Value, ir.Value]:
        """Push tangents forward through the nodes of `graph`: ẏ = Σ over operands x of ∂y/∂x · ẋ.

        Args:
            op: Builds the nodes; it has `pushes` set.
            graph: The main graph, or a body.
            seeds: Values with their tangents.

        Returns:
            The tangent of every value on the path that one reached.
        """
        tangents = dict(seeds)
        with recording(op):
            for step in self.path.steps_in(graph):
                for y, tangent in self._through(op, step, tangents):
                    seed = tangents.get(y) or tangents.get(self._predecessors.get(y, y))
                    tangents[y] = tangent if seed is None else op.total(seed, tangent)
        return tangents

    def current(self, value: ir.Value) -> ir.Value:
        """What stands in the place of `value`: itself, or an output of a node that took its producer's."""
        return self._successors.get(value, value)

    def replaced(self, old: ir.Value, new: ir.Value) -> None:
        """Note that `new` stands in the place of `old`."""
        self._successors[old], self._predecessors[new] = new, old
        self.path.follow(old, new)

    def roots(self) -> list[ir.Value]:
        """What the extended nodes read: needed, be it a tangent, though it is no result."""
        return [value for node in self.extended for value in read_values(node)]

    def _through(self, op: Builder, step: Step, tangents: Tangents) -> list[Pair]:
        """The tangents of the outputs of one node."""
        captured = {x: tangents[x] for v in step.captured if (x := self.current(v)) in tangents}
        operands = ((index, step.node.inputs[index]) for index in step.wanted)
        arriving = {i: tangents[x] for i, x in operands if x is not None and x in tangents}
        if not (captured or arriving):
            return []
        with op.differentiating(step.node, node_label(step.node)):
            pairs = list(self._pushed(op, step, arriving, captured, tangents))
            for y, tangent in pairs:
                if tangent.shape is None:
                    tangent.shape = y.shape
                op.label(tangent, f"{y.name}/tangent")
        return pairs

    def _pushed(
        self,
        op: Builder,
        step: Step,
        arriving: Mapping[int, ir.Value],
        captured: Tangents,
        tangents: Tangents,
    ) -> Iterable[Pair]:
        if step.entry.structural is not None:
            if step.entry.structural_tangents is None:
                raise RuleError(f"{step.where}: the operator has no rule for tangents")
            operands = {x: t for i, t in arriving.items() if (x := step.node.inputs[i]) is not None}
            return step.entry.structural_tangents(op, step.node, _Flow(self, {**captured, **operands}))
        if step.composition is not None:
            return self._through_composition(op, step, arriving)
        curve = curve_to(op, self.path, step.node)
        if curve is not None and curve.x in tangents:
            return [(step.node.outputs[0], curve.times_slope(op, tangents[curve.x]))]
        linearity = step.linearity
        if linearity is not None:
            results = _linear_tangents(op, step.node, linearity, arriving)
            if results is not None:
                return results
        if is_elementwise(step.node) and may_be_unused_at_singularity(op, step.node):
            return _one_by_one(op, step, arriving)
        return transposed(op, step, arriving)

    def _through_composition(
        self, op: Builder, step: Step, arriving: Mapping[int, ir.Value]
    ) -> Iterable[Pair]:
        node = step.node
        reached = [node.outputs[index] for index in step.reached]
        with composed(op, self.path, step, reached) as made:
            seeds = {x: t for i, t in arriving.items() if (x := node.inputs[i]) is not None}
            pushed = Push(made.path).forward(op, made.graph, seeds.items())
        return [(y, pushed[z]) for z, y in made.results if z in pushed]


@dataclass(frozen=True)
class _Flow:
    """`registry.ForwardFlow` of one node with bodies."""

    push: Push
    tangents: Tangents

    def is_active(self, value: ir.Value) -> bool:
        return self.push.path.is_active(value)

    def tangent(self, value: ir.Value) -> ir.Value | None:
        return self.tangents.get(value)

    def push_forward(self, op: Builder, body: ir.Graph, seeds: Sequence[Pair]) -> Tangents:
        return self.push.forward(op, body, [*self.tangents.items(), *seeds])

    def roots(self) -> list[ir.Value]:
        return self.push.roots()

    def extended(self, node: ir.Node) -> None:
        self.push.extended.append(node)

    def replaced(self, old: ir.Value, new: ir.Value) -> None:
        self.push.replaced(old, new)


def _linear_tangents(
    op: Builder, node: ir.Node, linearity: Linearity, arriving: Mapping[int, ir.Value]
) -> list[Pair] | None:
    """The node applied to the tangents of its operands; `None` where that has not the result's shape."""
    factors = linearity.factors if linearity.factors is not None else range(len(node.inputs))
    if not factors:
        together = linearity.together if linearity.together is not None else range(len(node.inputs))
        if linearity.broadcasts and any(index not in arriving for index in together):
            return None
        operands = [
            arriving.get(i) or _without_tangent(op, x, i in together, i in linearity.added)
            for i, x in enumerate(node.inputs)
        ]
        return list(zip(node.outputs, _applied(op, node, operands), strict=True))
    if linearity.joined is not None and all(index in arriving for index in factors):
        joined = linearity.joined(op, node, *(arriving[index] for index in factors))
        if joined is not None:
            return [(node.outputs[0], joined)]
    terms: list[ir.Value] = []
    added = {i: t for i, t in arriving.items() if i in linearity.added}
    for factor in factors:
        if factor in arriving:
            operands = [
                arriving[i] if i == factor else added.get(i) if i in linearity.added else x
                for i, x in enumerate(node.inputs)
            ]
            terms += _applied(op, node, operands)
            added = {}
    return [(node.outputs[0], functools.reduce(op.total, terms))] if terms else None


def _without_tangent(
    op: Builder, operand: ir.Value | None, is_linear: bool, is_added: bool
) -> ir.Value | None:
    """What stands in the place of an operand that has no tangent: zeros where its tangent would."""
    if operand is None or is_added:
        return None
    return op.zeros_like(operand) if is_linear else operand


def _applied(op: Builder, node: ir.Node, operands: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
    """The results of the operator of `node` on other operands."""
    attributes: dict[str, Any] = {a.name: a.value for a in node.attributes.values()}
    if len(node.outputs) == 1:
        return [op.node(node.op_type, *operands, **attributes)]
    results: Sequence[ir.Value] = op.node(node.op_type, *operands, outputs=len(node.outputs), **attributes)
    return results


def _one_by_one(op: Builder, step: Step, arriving: Mapping[int, ir.Value]) -> list[Pair]:
    """The sum of the terms of the operands, each zero where the tangent is, be the derivative infinite."""
    (y, *_) = step.node.outputs
    terms = [
        zero_where_zero(op, term, tangent)
        for index, tangent in arriving.items()
        for _, term in transposed(op, step, {index: tangent})
    ]
    return [(y, functools.reduce(op.total, terms))] if terms else []
