"""What an operator is composed of, built beside the forward node."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import RuleError
from onnx_grad.liveness import read_values
from onnx_grad.path import Path, Step
from onnx_grad.recording import recording
from onnx_grad.singularities import continue_at
from onnx_grad.wiring import body

# The content of larger constants says nothing about shapes.
_LARGEST_CONSTANT = 64


@dataclass(frozen=True)
class Composed:
    """The nodes that a forward node is composed of.

    Attributes:
        graph: A graph of them.
        path: The path through them, from what the node reads to what it gives.
        wanted: The operands of the node whose derivatives are wanted.
        results: Results of theirs, each with the output of the node that holds the same.
    """

    graph: ir.Graph
    path: Path
    wanted: list[ir.Value]
    results: list[tuple[ir.Value, ir.Value]]


@contextlib.contextmanager
def composed(op: Builder, path: Path, step: Step, reached: Collection[ir.Value]) -> Iterator[Composed]:
    """Record with `op` what the node of `step` is composed of; inside, those nodes are in a graph.

    Args:
        op: The builder that records derivatives of them next.
        path: The path that the node is on.
        step: The node.
        reached: Those of its outputs whose derivatives are wanted.

    Raises:
        RuleError: Something that it is composed of cannot be differentiated.
    """
    node, apart = step.node, op.apart()
    if step.composition is None:
        raise RuleError(f"{step.where}: the operator is not composed of others")
    with recording(apart):
        made = step.composition(apart, node)
    results = [made] if isinstance(made, ir.Value) else list(made)
    pairs = [(z, y) for z, y in zip(results, node.outputs, strict=False) if z is not None and y in reached]
    op.nodes += apart.nodes
    graph = ir.Graph([], [], nodes=apart.nodes, opset_imports={"": op.opset})
    infer_composition(apart.nodes, op.opset)
    same = _same_values(apart.nodes, results, node.outputs)
    for result, output in same:
        continue_at(op, result, output)
    wanted = list(dict.fromkeys(value for index in step.wanted if (value := node.inputs[index]) is not None))
    inner_path = Path(graph, wanted, [result for result, _ in pairs], quantization=path.quantization)
    blocked = inner_path.blocked()
    if blocked:
        inner, reason = blocked[0]
        raise RuleError(f"{step.where}: its {inner.node.op_type} cannot be differentiated: {reason}")
    yield Composed(graph, inner_path, wanted, pairs)
    graph.remove(apart.nodes)
    for result, output in same:
        _read_instead(result, output)


def _same_values(
    nodes: Sequence[ir.Node], results: Iterable[ir.Value | None], outputs: Iterable[ir.Value]
) -> list[tuple[ir.Value, ir.Value]]:
    """The results of a composition with the outputs of the forward node that hold the same."""
    return [
        (result, output)
        for result, output in zip(results, outputs, strict=False)
        if result is not None and result.producer() in nodes
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


def infer_composition(nodes: Sequence[ir.Node], opset: int) -> None:
    """Give the results of `nodes`, in topological order, the shapes and types that follow.

    Args:
        nodes: Recorded nodes; nothing is inferred of those outside of the default domain.
        opset: The version of the default domain.
    """
    results = {value.name: value for node in nodes for value in node.outputs if value.name}
    outer = dict.fromkeys(v for node in nodes for v in read_values(node) if v.name not in results)
    for producer in dict.fromkeys(filter(None, map(_adds_output, outer))):
        infer_composition([producer], opset)
    graph = onnx.GraphProto(name="composition", node=map(ir.serde.serialize_node, nodes))
    graph.input.extend(ir.serde.serialize_value(value) for value in outer)
    graph.value_info.extend(ir.serde.serialize_value(v) for v in results.values() if v.shape is not None)
    graph.initializer.extend(_small_constants(outer))
    others = {node.domain for node in nodes} - {"", "ai.onnx"}
    opsets = [("", opset), *((domain, 1) for domain in sorted(others))]
    imports = [onnx.helper.make_opsetid(*imported) for imported in opsets]
    model = onnx.ModelProto(ir_version=10, graph=graph, opset_import=imports)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    symbols = {dim.value for value in (*outer, *results.values()) for dim in _symbolic(value)}
    _annotate(nodes, inferred.graph, symbols)


def _annotate(nodes: Iterable[ir.Node], inferred: onnx.GraphProto, symbols: Collection[str | None]) -> None:
    """Give the results of `nodes` and of their bodies the shapes that were inferred of the same graph."""
    nodes = tuple(nodes)
    results = {value.name: value for node in nodes for value in node.outputs if value.name}
    for info in (*inferred.value_info, *inferred.output):
        value = results.get(info.name)
        if value is not None and value.shape is None:
            ir.serde.deserialize_value_info_proto(info, value)
            _forget_symbols(value, symbols)
    for node, same in zip(nodes, inferred.node, strict=True):
        for attribute in same.attribute:
            if attribute.HasField("g"):
                _annotate(body(node, attribute.name), attribute.g, symbols)


def _adds_output(value: ir.Value) -> ir.Node | None:
    """The forward node of an output that was left out and is asked for now: its shape is not inferred yet."""
    node = value.producer()
    if value.shape is not None or node is None or node.graph is None or node.domain != "":
        return None
    return node if node.outputs[0].shape is not None else None


def _symbolic(value: ir.Value) -> list[ir.SymbolicDim]:
    return [dim for dim in known.dimensions(value) or () if isinstance(dim, ir.SymbolicDim)]


def _forget_symbols(value: ir.Value, kept: Collection[str | None]) -> None:
    """Make new symbols unknown dimensions: each inference counts its own, which are not those of another."""
    if any(dim.value not in kept for dim in _symbolic(value)):
        dims = known.dimensions(value) or ()
        value.shape = ir.Shape([d if isinstance(d, int) or d.value in kept else None for d in dims])


def _small_constants(values: Iterable[ir.Value]) -> Iterable[onnx.TensorProto]:
    for value in values:
        if value.const_value is None or value.const_value.size > _LARGEST_CONSTANT:
            continue
        content = known.constant(value)
        if content is not None and value.name is not None:
            yield onnx.numpy_helper.from_array(content, value.name)
