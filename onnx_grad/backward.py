"""The reverse walk: from the cotangents of `of` to those of `wrt`, one rule a node."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder, recording
from onnx_grad.errors import RuleError
from onnx_grad.masking import without_undefined
from onnx_grad.path import Path, Step
from onnx_grad.registry import InputCotangent, State


def pull_back(op: Builder, path: Path, seeds: Mapping[ir.Value, ir.Value]) -> Cotangents:
    """Pull cotangents of `of` back along `path`: dx = Σ over uses of x of Jᵀ·dy.

    Args:
        op: Builds the backward nodes.
        path: The nodes from `wrt` to `of`, none of them blocked.
        seeds: The cotangent of each value in `of`.

    Returns:
        The accumulated cotangent of every value on the path that one reached.

    Raises:
        RuleError: A rule gave something that does not fit its node.
    """
    cotangents = Cotangents(op)
    with recording(op):
        for value, seed in seeds.items():
            cotangents.add(value, seed)
        for step in reversed(path.steps):
            arriving = [cotangents.get(output) for output in step.node.outputs]
            if any(cotangent is not None for cotangent in arriving):
                _pull_back_node(op, step, arriving, cotangents)
    return cotangents


class Cotangents:
    """The cotangent of each value so far; contributions of several uses add up."""

    def __init__(self, op: Builder) -> None:
        self._op = op
        self._sums: dict[ir.Value, ir.Value] = {}

    def get(self, value: ir.Value) -> ir.Value | None:
        """What has arrived at `value`, or `None`."""
        return self._sums.get(value)

    def add(self, value: ir.Value, contribution: ir.Value) -> None:
        """Add the contribution of one more use of `value`."""
        before = self._sums.get(value)
        self._sums[value] = contribution if before is None else self._op.Add(before, contribution)


def node_label(node: ir.Node) -> str:
    """How a forward node is called in names: its own name, or that of its first output."""
    return node.name or next((o.name for o in node.outputs if o.name), node.op_type)


def _pull_back_node(
    op: Builder, step: Step, arriving: Sequence[ir.Value | None], cotangents: Cotangents
) -> None:
    node, name = step.node, node_label(step.node)
    with op.differentiating(node, name):
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
            op.label(cotangent, f"{name}/d{_input_name(node.op_type, node.domain, index)}")
            cotangents.add(operand, cotangent)


def _apply_rule(op: Builder, step: Step, arriving: Sequence[ir.Value | None]) -> Sequence[InputCotangent]:
    rule, arity = step.entry.rule, step.entry.arity
    if step.entry.state is not State.RULE or rule is None:
        raise RuleError(f"{_where(step)}: the operator has no rule to apply")
    given = list(arriving)
    if arity is not None:
        if any(cotangent is not None for cotangent in given[arity:]):
            raise RuleError(
                f"{_where(step)}: a cotangent arrives at output {arity}, but the rule takes {arity} only; "
                "add a parameter for it to the rule"
            )
        given = (given + [None] * arity)[:arity]
    results = rule(op, step.node, *given)
    if results is None or isinstance(results, ir.Value) or callable(results):
        return (results,)
    if len(results) > len(step.node.inputs):
        raise RuleError(
            f"{_where(step)}: the rule gave {len(results)} cotangents for {len(step.node.inputs)} inputs"
        )
    return results


def _check_type(step: Step, index: int, operand: ir.Value, cotangent: object) -> None:
    if not isinstance(cotangent, ir.Value):
        raise RuleError(
            f"{_where(step)}: the rule gave a {type(cotangent).__name__} as cotangent of input {index}; "
            "it must be a value of the graph, None or a function that builds one"
        )
    if None not in (operand.dtype, cotangent.dtype) and operand.dtype != cotangent.dtype:
        raise RuleError(
            f"{_where(step)}: the cotangent of input {index} ('{operand.name}') is {cotangent.dtype}, "
            f"but the input is {operand.dtype}"
        )


def _where(step: Step) -> str:
    return f"gradient of {step.node.op_type} node '{node_label(step.node)}'"


@functools.cache
def _input_name(op_type: str, domain: str, index: int) -> str:
    """The formal name of an input in the operator's schema, or its position where it has none."""
    if domain == "" and onnx.defs.has(op_type):
        formals = onnx.defs.get_schema(op_type).inputs
        if index < len(formals) and formals[index].option != _VARIADIC:
            return str(formals[index].name)
    return str(index)


_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic
