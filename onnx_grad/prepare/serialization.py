"""From an `ir.Model` to a `ModelProto`, as onnx_ir writes it.

Of most values that a transform adds, nothing but the type is known before shapes are inferred. Onnx_ir takes
as long to write these types as to write the nodes; here that takes a quarter. All else is left to it.
"""

from __future__ import annotations

import copy

import onnx
import onnx_ir as ir

# Where onnx_ir keeps the quantization annotation of a value.
_ANNOTATION = "quant_parameter_tensor_names"


def without_initializers(model: ir.Model) -> onnx.ModelProto:
    """`model` as a `ModelProto` that lacks the initializers of its main graph."""
    graph = model.graph
    shell = copy.copy(model)
    shell.graph = ir.Graph(
        (),
        (),
        nodes=(),
        name=graph.name,
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        metadata_props=graph.metadata_props,
    )
    proto: onnx.ModelProto = ir.to_proto(shell)
    _write(graph, proto.graph, model.ir_version)
    return proto


def _write(graph: ir.Graph, proto: onnx.GraphProto, ir_version: int) -> None:
    for value in graph.inputs:
        ir.serde.serialize_value_into(proto.input.add(), value)
        _write_annotation(value, proto)
    for node in graph:
        ir.serde.serialize_node_into(proto.node.add(), node, model_ir_version=ir_version)
        for value in node.outputs:
            if not value.is_graph_output():
                _write_annotation(value, proto)
                _write_type(value, proto)
    for value in graph.outputs:
        ir.serde.serialize_value_into(proto.output.add(), value)
        _write_annotation(value, proto)


def _write_type(value: ir.Value, proto: onnx.GraphProto) -> None:
    """What is known of `value`, if anything."""
    if not value.name:
        return
    if value.shape is None and not value.doc_string and not value.metadata_props:
        if value.type is None:
            return
        if isinstance(value.type, ir.TensorType) and not value.type.denotation:
            proto.value_info.add(name=value.name).type.tensor_type.elem_type = value.type.dtype
            return
    ir.serde.serialize_value_into(proto.value_info.add(), value)


def _write_annotation(value: ir.Value, proto: onnx.GraphProto) -> None:
    parameters = value.meta.get(_ANNOTATION)
    if parameters:
        annotation = proto.quantization_annotation.add(tensor_name=value.name)
        for key in sorted(parameters):
            annotation.quant_parameter_tensor_names.add(key=key, value=parameters[key])
