"""Transposing a gradient rule: from dx = Jᵀ·dy to ẏ = J·ẋ.

The rule is linear in dy. Pulling a tangent ẋ of dx back to dy therefore gives J·ẋ, whatever dy is: of what
the rule makes of dy, nothing is read then but its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.backward import operand_cotangents, pull_back
from onnx_grad.builder import Builder
from onnx_grad.composition import infer_composition
from onnx_grad.errors import RuleError
from onnx_grad.liveness import read_values
from onnx_grad.path import Path, Step
from onnx_grad.recording import recording
from onnx_grad.wiring import wiring

Pair = tuple[ir.Value, ir.Value]


def transposed(op: Builder, step: Step, arriving: Mapping[int, ir.Value]) -> list[Pair]:
    """The tangents of the outputs of a node, ẏ = J·ẋ, by its gradient rule.

    Args:
        op: Builds the nodes.
        step: The node.
        arriving: Tangents of its operands, by position.

    Returns:
        Outputs with their tangents, as far as the operands reach them.

    Raises:
        RuleError: The rule is not linear in the cotangent, or gives something that has no derivative.
    """
    node, apart, before = step.node, op.apart(), len(op.nodes)
    cotangents = {index: _cotangent(op, node.outputs[index]) for index in step.reached}
    with recording(apart):
        given = operand_cotangents(
            apart,
            replace(step, wanted=tuple(arriving)),
            [cotangents.get(index) for index in range(len(node.outputs))],
        )
        seeds = [(dx, arriving[index]) for index, _, dx in given]
    op.nodes += apart.nodes
    graph = ir.Graph([], [], nodes=apart.nodes, opset_imports={"": op.opset})
    infer_composition(apart.nodes, op.opset)
    path = Path(graph, cotangents.values(), [dx for dx, _ in seeds])
    if blocked := path.blocked():
        inner, reason = blocked[0]
        raise RuleError(f"{step.where}: its {inner.node.op_type} cannot be differentiated: {reason}")
    pulled = pull_back(op, path, graph, seeds)
    graph.remove(apart.nodes)
    if node.op_type not in _WRONG_SIZES:
        _read_shapes_elsewhere(op, before, node, cotangents.values())
    results = [(node.outputs[i], pulled[dy]) for i, dy in cotangents.items() if dy in pulled]
    _check_linear(step, op.nodes[before:], [tangent for _, tangent in results], cotangents.values())
    for index, dy in cotangents.items():
        dy.replace_all_uses_with(node.outputs[index])
    return results


def _cotangent(op: Builder, y: ir.Value) -> ir.Value:
    """What stands for the cotangent of `y`, until `y` itself does where its shape is read."""
    dtype = y.dtype if known.may_be_float(y) else known.ROUNDED_COTANGENT
    return ir.Value(
        name=op.unique_name(f"{y.name}/cotangent"),
        shape=y.shape,
        type=None if dtype is None else ir.TensorType(dtype),
    )


# Onnx infers the size of the input for an output whose size another input says.
_WRONG_SIZES = ("DFT",)


def _read_shapes_elsewhere(op: Builder, begin: int, forward: ir.Node, cotangents: Iterable[ir.Value]) -> None:
    """Take shapes of what depends on cotangents from other values, where their dimensions are known.

    Else it would have to be computed for its shape alone.

    Args:
        op: The builder whose nodes from number `begin` on were recorded for `forward`.
        begin: The number of the first one.
        forward: The forward node.
        cotangents: What stands for its cotangents.
    """
    varying, sizes = set(cotangents), dict[str, tuple[ir.Value, int]]()
    _note_sizes(sizes, (*forward.inputs, *forward.outputs))
    recorded, op.nodes = op.nodes[begin:], op.nodes[:begin]
    for node in recorded:
        if varying.isdisjoint(read_values(node)):
            _note_sizes(sizes, node.outputs)
        elif node.op_type == "Shape" and (same := _shape_of_sizes(op, node, sizes)) is not None:
            node.outputs[0].replace_all_uses_with(same)
        else:
            varying.update(node.outputs)
        op.nodes.append(node)


def _note_sizes(sizes: dict[str, tuple[ir.Value, int]], values: Iterable[ir.Value | None]) -> None:
    for value in values:
        for axis, dim in enumerate((known.dimensions(value) or ()) if value is not None else ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and value is not None:
                sizes.setdefault(dim.value, (value, axis))


def _shape_of_sizes(op: Builder, node: ir.Node, sizes: Mapping[str, tuple[ir.Value, int]]) -> ir.Value | None:
    """What a `Shape` node gives, put together from the sizes of other values; `None` where one is unknown."""
    dims = known.dimensions(known.operand(node, 0))
    if dims is None:
        return None
    pieces: list[ir.Value] = []
    for dim in dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]:
        if isinstance(dim, int):
            pieces.append(op.constant([dim], ir.DataType.INT64))
        elif dim.value is not None and dim.value in sizes:
            value, axis = sizes[dim.value]
            pieces.append(op.Shape(value, start=axis, end=axis + 1))
        else:
            return None
    return op.Concat(*pieces, axis=0) if pieces else op.constant([], ir.DataType.INT64)


def _check_linear(
    step: Step, nodes: Sequence[ir.Node], results: Iterable[ir.Value], cotangents: Iterable[ir.Value]
) -> None:
    """See that no more than the shape of a cotangent is read, as it is if the rule is linear in it."""
    needed, varying = set(results), set(cotangents)
    for node in reversed(nodes):
        if needed.isdisjoint(node.outputs):
            continue
        read = set(_contents_read(node))
        if not varying.isdisjoint(read):
            raise RuleError(
                f"{step.where}: the rule is not linear in the cotangent, which its {node.op_type} reads, so "
                "that it gives no tangents"
            )
        needed |= read


def _contents_read(node: ir.Node) -> Iterator[ir.Value]:
    """What `node` and its bodies read more of than the shape."""
    if node.op_type in ("Shape", "Size"):
        return
    wires = wiring(node)
    if wires is None:
        yield from read_values(node)
        return
    inside = {value for body in wires.bodies for inner in body for value in _contents_read(inner)}
    inside.update(output for body in wires.bodies for output in body.outputs)
    entering: dict[ir.Value, list[ir.Value]] = {}
    for source, target in wires.entering:
        entering.setdefault(source, []).append(target)
    for value in node.inputs:
        if value is not None and (value not in entering or not inside.isdisjoint(entering[value])):
            yield value
    yield from (value for value in known.captured_values(node) if value in inside)
