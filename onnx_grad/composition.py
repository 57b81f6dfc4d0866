"""The shapes and types of recorded nodes that are in no model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.liveness import read_values

# The content of larger constants says nothing about shapes.
_LARGEST_CONSTANT = 64


def infer_composition(nodes: Sequence[ir.Node], opset: int) -> None:
    """Give the results of `nodes`, in topological order, the shapes and types that follow.

    Args:
        nodes: Recorded nodes; nothing is inferred of those outside of the default domain.
        opset: The version of the default domain.
    """
    results = {value.name: value for node in nodes for value in node.outputs if value.name}
    outer = dict.fromkeys(v for node in nodes for v in read_values(node) if v.name not in results)
    graph = onnx.GraphProto(name="composition", node=map(ir.serde.serialize_node, nodes))
    graph.input.extend(ir.serde.serialize_value(value) for value in outer)
    graph.initializer.extend(_small_constants(outer))
    others = {node.domain for node in nodes} - {"", "ai.onnx"}
    opsets = [("", opset), *((domain, 1) for domain in sorted(others))]
    imports = [onnx.helper.make_opsetid(*imported) for imported in opsets]
    model = onnx.ModelProto(ir_version=10, graph=graph, opset_import=imports)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    symbols = {dim.value for value in outer for dim in _symbolic(value)}
    for info in inferred.graph.value_info:
        value = results.get(info.name)
        if value is not None and value.shape is None:
            ir.serde.deserialize_value_info_proto(info, value)
            _forget_symbols(value, symbols)


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
