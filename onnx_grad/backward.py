"""The reverse walk: from the cotangents of `of` to those of `wrt`, one rule a node."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.composition import composed
from onnx_grad.curves import Curve, curve_to
from onnx_grad.errors import RuleError
from onnx_grad.masking import without_undefined
from onnx_grad.path import Nodes, Path, Step, node_label
from onnx_grad.recording import recording
from onnx_grad.registry import InputCotangent, State


def pull_back(
    op: Builder, path: Path, graph: Nodes, seeds: Iterable[tuple[ir.Value, ir.Value]]
) -> Cotangents:
    """Pull cotangents back through the nodes of `graph` on `path`: dx = Σ over uses of x of Jᵀ·dy.

    Args:
        op: Builds the backward nodes.
        path: The nodes from `wrt` to `of`, none of them blocked.
        graph: The main graph, a body, or a view on nodes that may be of several graphs.
        seeds: Values with their cotangents; those of one value add up.

    Returns:
        The accumulated cotangent of every value on the path that one reached.

    Raises:
        RuleError: A rule gave something that does not fit its node.
    """
    cotangents = Cotangents(op)
    with recording(op):
        for value, seed in seeds:
            cotangents.add(value, seed)
        for step in reversed(path.steps_in(graph)):
            arriving = [cotangents.get(output) for output in step.node.outputs]
            if all(cotangent is None for cotangent in arriving):
                continue
            if step.entry.structural is not None:
                _pull_back_bodies(op, path, step, arriving, cotangents)
            elif step.composition is not None:
                _pull_back_composition(op, path, step, arriving, cotangents)
            elif (curve := curve_to(op, path, step.node)) is not None:
                _pull_back_curve(op, step, curve, arriving[0], cotangents)
            else:
                _pull_back_node(op, step, arriving, cotangents)
    return cotangents


class Cotangents(Mapping[ir.Value, ir.Value]):
    """The cotangent of each value so far; contributions of several uses add up."""

    def __init__(self, op: Builder) -> None:
        self._op = op
        self._sums: dict[ir.Value, ir.Value] = {}

    def __getitem__(self, value: ir.Value) -> ir.Value:
        return self._sums[value]

    def __iter__(self) -> Iterator[ir.Value]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, value: ir.Value, contribution: ir.Value) -> None:
        """Add the contribution of one more use of `value`."""
        before = self._sums.get(value)
        self._sums[value] = contribution if before is None else self._op.total(before, contribution)


def _pull_back_curve(
    op: Builder, step: Step, curve: Curve, dy: ir.Value | None, cotangents: Cotangents
) -> None:
    """To where the curve begins: nothing arrives at the nodes between, by this way."""
    name = node_label(step.node)
    with op.differentiating(step.node, name):
        if dy is not None:
            cotangent = curve.times_slope(op, dy)
            op.label(cotangent, f"{name}/d_{curve.x.name}")
            cotangents.add(curve.x, cotangent)


def _pull_back_node(
    op: Builder, step: Step, arriving: Sequence[ir.Value | None], cotangents: Cotangents
) -> None:
    node, name = step.node, node_label(step.node)
    with op.differentiating(node, name):
        for index, operand, cotangent in operand_cotangents(op, step, arriving):
            op.label(cotangent, f"{name}/d{_input_name(node.op_type, node.domain, index)}")
            cotangents.add(operand, cotangent)


def operand_cotangents(
    op: Builder, step: Step, arriving: Sequence[ir.Value | None]
) -> Iterator[tuple[int, ir.Value, ir.Value]]:
    """The cotangents that the rule of a node gives for its wanted operands, of their shapes and types.

    Args:
        op: Builds the nodes.
        step: The node.
        arriving: The cotangent of each output, if one arrived.

    Yields:
        The position of an operand, the operand and its cotangent.

    Raises:
        RuleError: The rule gave something that does not fit the node.
    """
    node = step.node
    results = _apply_rule(op, step, arriving)
    for index in step.wanted:
        operand = node.inputs[index]
        cotangent = results[index] if index < len(results) else None
        if callable(cotangent):
            cotangent = cotangent()
        if cotangent is None or operand is None:
            continue
        _check_type(step, index, operand, cotangent)
        cotangent = without_undefined(op, node, cotangent, arriving[0])
        if step.entry.broadcasts:
            cotangent = undo_broadcast(op, cotangent, operand, node.outputs[0])
        yield index, operand, cotangent


@dataclass(frozen=True)
class _Flow:
    """`registry.Flow` along one path."""

    path: Path
    captured: Sequence[ir.Value]

    def is_active(self, value: ir.Value) -> bool:
        return self.path.is_active(value)

    def pull_back(
        self, op: Builder, body: ir.Graph, seeds: Sequence[tuple[ir.Value, ir.Value]]
    ) -> Mapping[ir.Value, ir.Value]:
        return pull_back(op, self.path, body, seeds)


def _pull_back_bodies(
    op: Builder, path: Path, step: Step, arriving: Sequence[ir.Value | None], cotangents: Cotangents
) -> None:
    node, name = step.node, node_label(step.node)
    if step.entry.structural is None:
        raise RuleError(f"{step.where}: the operator has no rule to apply")
    with op.differentiating(node, name):
        for value, contribution in step.entry.structural(op, node, _Flow(path, step.captured), arriving):
            op.label(contribution, f"{name}/d_{value.name}")
            cotangents.add(value, contribution)


def _pull_back_composition(
    op: Builder, path: Path, step: Step, arriving: Sequence[ir.Value | None], cotangents: Cotangents
) -> None:
    node = step.node
    with op.differentiating(node, node_label(node)):
        reached = {y: dy for y, dy in zip(node.outputs, arriving, strict=True) if dy is not None}
        with composed(op, path, step, reached) as made:
            pulled = pull_back(op, made.path, made.graph, [(z, reached[y]) for z, y in made.results])
        for operand in made.wanted:
            if operand in pulled:
                cotangents.add(operand, pulled[operand])


def _apply_rule(op: Builder, step: Step, arriving: Sequence[ir.Value | None]) -> Sequence[InputCotangent]:
    rule, arity = step.entry.rule, step.entry.arity
    if step.entry.state is not State.RULE or rule is None:
        raise RuleError(f"{step.where}: the operator has no rule to apply")
    given = list(arriving)
    if arity is not None:
        if any(cotangent is not None for cotangent in given[arity:]):
            raise RuleError(
                f"{step.where}: a cotangent arrives at output {arity}, but the rule takes {arity} only; "
                "add a parameter for it to the rule"
            )
        given = (given + [None] * arity)[:arity]
    results = rule(op, step.node, *given)
    if results is None or isinstance(results, ir.Value) or callable(results):
        return (results,)
    if len(results) > len(step.node.inputs):
        raise RuleError(
            f"{step.where}: the rule gave {len(results)} cotangents for {len(step.node.inputs)} inputs"
        )
    return results


def _check_type(step: Step, index: int, operand: ir.Value, cotangent: object) -> None:
    if not isinstance(cotangent, ir.Value):
        raise RuleError(
            f"{step.where}: the rule gave a {type(cotangent).__name__} as cotangent of input {index}; "
            "it must be a value of the graph, None or a function that builds one"
        )
    expected = operand.dtype if known.may_be_float(operand) else known.ROUNDED_COTANGENT
    if None not in (expected, cotangent.dtype) and expected != cotangent.dtype:
        raise RuleError(
            f"{step.where}: the cotangent of input {index} ('{operand.name}') is {cotangent.dtype}, "
            f"but the input is {operand.dtype}"
            + ("" if expected == operand.dtype else f", whose cotangents are {expected}")
        )


@functools.cache
def _input_name(op_type: str, domain: str, index: int) -> str:
    """The formal name of an input in the operator's schema, or its position where it has none."""
    if domain == "" and onnx.defs.has(op_type):
        formals = onnx.defs.get_schema(op_type).inputs
        if index < len(formals) and formals[index].option != _VARIADIC:
            return str(formals[index].name)
    return str(index)


_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic
