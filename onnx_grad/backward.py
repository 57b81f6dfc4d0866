"""The reverse walk: from the cotangents of `of` to those of `wrt`, one rule a node."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder, recording
from onnx_grad.composition import infer_composition
from onnx_grad.errors import RuleError
from onnx_grad.masking import without_undefined
from onnx_grad.path import Nodes, Path, Step
from onnx_grad.registry import Composition, InputCotangent, State
from onnx_grad.rounding import on_floats
from onnx_grad.singularities import continue_at


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
            composition = on_floats if step.runs_on_floats else step.entry.composition
            if step.entry.structural is not None:
                _pull_back_bodies(op, path, step, arriving, cotangents)
            elif composition is not None:
                _pull_back_composition(op, path, step, composition, arriving, cotangents)
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
        raise RuleError(f"{_where(step)}: the operator has no rule to apply")
    with op.differentiating(node, name):
        for value, contribution in step.entry.structural(op, node, _Flow(path, step.captured), arriving):
            op.label(contribution, f"{name}/d_{value.name}")
            cotangents.add(value, contribution)


def _pull_back_composition(
    op: Builder,
    path: Path,
    step: Step,
    composition: Composition,
    arriving: Sequence[ir.Value | None],
    cotangents: Cotangents,
) -> None:
    """Build what the node is composed of beside it, and pull the cotangents back through that."""
    node, name = step.node, node_label(step.node)
    with op.differentiating(node, name):
        apart = op.apart()
        with recording(apart):
            made = composition(apart, node)
        results = [made] if isinstance(made, ir.Value) else made
        seeds = [
            (result, dy)
            for result, dy in zip(results, arriving, strict=False)
            if dy is not None and result is not None
        ]
        op.nodes += apart.nodes
        composed = ir.Graph([], [], nodes=apart.nodes, opset_imports={"": op.opset})
        infer_composition(apart.nodes, op.opset)
        wanted = [value for index in step.wanted if (value := node.inputs[index]) is not None]
        same = _same_values(apart.nodes, results, node.outputs)
        for result, output in same:
            continue_at(op, result, output)
        inner_path = Path(composed, wanted, [y for y, _ in seeds], quantization=path.quantization)
        blocked = inner_path.blocked()
        if blocked:
            inner, reason = blocked[0]
            raise RuleError(f"{_where(step)}: its {inner.node.op_type} cannot be differentiated: {reason}")
        pulled = pull_back(op, inner_path, composed, seeds)
        composed.remove(apart.nodes)
        for result, output in same:
            _read_instead(result, output)
        for operand in dict.fromkeys(wanted):
            if operand in pulled:
                cotangents.add(operand, pulled[operand])


def _same_values(
    composed: Sequence[ir.Node], results: Iterable[ir.Value | None], outputs: Iterable[ir.Value]
) -> list[tuple[ir.Value, ir.Value]]:
    """The results of a composition with the outputs of the forward node that hold the same."""
    return [
        (result, output)
        for result, output in zip(results, outputs, strict=False)
        if result is not None and result.producer() in composed
        if output.name and output.dtype in (None, result.dtype)
    ]


def _read_instead(result: ir.Value, output: ir.Value) -> None:
    """Let what reads a result of a composition read the forward node's output, which is the same.

    It may be rounded differently, so not where it is compared with what the composition computes it from.
    """
    users = tuple(result.uses())
    if any(user.op_type in _COMPARISONS and not _is_compared_with_constant(user) for user, _ in users):
        return
    for user, index in users:
        user.replace_input_with(index, output)


_COMPARISONS = frozenset("Equal Greater GreaterOrEqual Less LessOrEqual".split())


def _is_compared_with_constant(node: ir.Node) -> bool:
    return any(value is not None and value.const_value is not None for value in node.inputs)


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
    expected = operand.dtype if known.may_be_float(operand) else known.ROUNDED_COTANGENT
    if None not in (expected, cotangent.dtype) and expected != cotangent.dtype:
        raise RuleError(
            f"{_where(step)}: the cotangent of input {index} ('{operand.name}') is {cotangent.dtype}, "
            f"but the input is {operand.dtype}"
            + ("" if expected == operand.dtype else f", whose cotangents are {expected}")
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
