"""Shapes and types of every value, by onnx's own inference on the light model."""

from __future__ import annotations

import onnx

from onnx_grad.errors import ModelError


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with the shapes and types that can be inferred.

    Where the model's own annotations contradict its operators, those of intermediate values and the shapes
    of outputs are dropped and inferred anew: exporters are known to leave wrong ones.

    Raises:
        ModelError: The operators themselves do not fit together.
    """
    try:
        return _infer(proto)
    except onnx.shape_inference.InferenceError:
        pass
    try:
        return _infer(_without_annotations(proto))
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the model's shapes or types do not fit together: {error}") from error


def _infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inference with stand-ins of the same shapes for operators that onnx's own cannot handle."""
    unhandled = [(i, n.op_type) for i, n in enumerate(proto.graph.node) if n.op_type in _UNHANDLED]
    _set_operators(proto, [(i, "InstanceNormalization") for i, _ in unhandled])
    try:
        inferred = _infer_strictly(proto)
    finally:
        _set_operators(proto, unhandled)
    _set_operators(inferred, unhandled)
    _drop_wrong_ranks(inferred.graph)
    return inferred


def _drop_wrong_ranks(graph: onnx.GraphProto) -> None:
    """Onnx infers rank 0 for outputs of `Attention` where it knows no rank of the inputs."""
    outputs = {name for node in graph.node if node.op_type == "Attention" for name in node.output}
    for value in (*graph.value_info, *graph.output):
        if value.name in outputs and not value.type.tensor_type.shape.dim:
            value.type.tensor_type.ClearField("shape")


# It has nothing for the first, and fails on the default axes of the second.
_UNHANDLED = ("GroupNormalization", "MeanVarianceNormalization")


def _set_operators(proto: onnx.ModelProto, operators: list[tuple[int, str]]) -> None:
    for index, op_type in operators:
        proto.graph.node[index].op_type = op_type


def _infer_strictly(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        # Propagating values fails on some valid graphs, such as Mul(Unsqueeze(x, [1]), y) of two vectors.
        onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _without_annotations(proto: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return bare
