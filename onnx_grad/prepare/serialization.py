"""From an `ir.Model` to a `ModelProto`, as onnx_ir writes it.

Onnx_ir takes longer to write what is known of the values than to write the nodes. Here the common kind of
value, a tensor of some type and shape and nothing else, takes a quarter of that; all else is left to onnx_ir.
"""

from __future__ import annotations

import copy

import onnx
import onnx_ir as ir

# Where onnx_ir keeps the quantization annotation of a value.
_ANNOTATION = "quant_parameter_tensor_names"


def without_initializers(model: ir.Model, annotated: bool) -> onnx.ModelProto:
    """`model` as a `ModelProto` that lacks the initializers of its main graph.

    Args:
        model: The model.
        annotated: Whether a value of the main graph may have a quantization annotation.
    """
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
    if annotated:
        _write_annotations(graph, proto.graph)
    return proto


def _write(graph: ir.Graph, proto: onnx.GraphProto, ir_version: int) -> None:
    for value in graph.inputs:
        _write_value(value, proto.input.add())
    for node in graph:
        ir.serde.serialize_node_into(proto.node.add(), node, model_ir_version=ir_version)
        for value in node.outputs:
            if value.name and not value.is_graph_output() and _is_described(value):
                _write_value(value, proto.value_info.add())
    for value in graph.outputs:
        _write_value(value, proto.output.add())


def _is_described(value: ir.Value) -> bool:
    """Whether anything is known of `value`."""
    described = value.type is not None or value.shape is not None
    return described or bool(value.metadata_props or value.doc_string)


def _write_value(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    name, kind = value.name, value.type
    if name is None or not isinstance(kind, ir.TensorType) or _has_remarks(value, kind):
        ir.serde.serialize_value_into(info, value)
        return
    info.name = name
    tensor = info.type.tensor_type
    tensor.elem_type = kind.dtype
    if value.shape is not None:
        tensor.shape.SetInParent()
        for index, dim in enumerate(value.shape.dims):
            size = tensor.shape.dim.add()
            if isinstance(dim, int):
                size.dim_value = dim
            elif dim.value is not None:
                size.dim_param = str(dim.value)
            if denotation := value.shape.get_denotation(index):
                size.denotation = denotation


def _has_remarks(value: ir.Value, kind: ir.TensorType) -> bool:
    return bool(kind.denotation or value.metadata_props or value.doc_string)


def _write_annotations(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    results = (value for node in graph for value in node.outputs if not value.is_graph_output())
    for value in (*graph.inputs, *results, *graph.outputs):
        if parameters := value.meta.get(_ANNOTATION):
            annotation = proto.quantization_annotation.add(tensor_name=value.name)
            for key in sorted(parameters):
                annotation.quant_parameter_tensor_names.add(key=key, value=parameters[key])
