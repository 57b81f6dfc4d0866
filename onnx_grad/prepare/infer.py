"""Shapes and types of every value, by onnx's own inference on the light model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import onnx

from onnx_grad.errors import ModelError
from onnx_grad.prepare.contrib import infer_shapes
from onnx_grad.prepare.contrib_bodies import BODIES
from onnx_grad.prepare.example_sizes import fixed_sizes_forgotten, restore_fixed_sizes
from onnx_grad.prepare.expand import DOMAIN, call_bodies, types_of
from onnx_grad.prepare.validate import all_nodes, operators


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with the shapes and types that can be inferred.

    Where the model's own annotations contradict its operators, those of intermediate values and the shapes
    of outputs are dropped and inferred anew: exporters are known to leave wrong ones.

    Raises:
        ModelError: The operators themselves do not fit together.
    """
    with fixed_sizes_forgotten(proto) as declared:
        inferred = _infer_despite_annotations(proto)
    restore_fixed_sizes(inferred, declared)
    return inferred


def _infer_despite_annotations(proto: onnx.ModelProto) -> onnx.ModelProto:
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
    present = operators(proto.graph)
    if present.isdisjoint(BODIES) and all(op_type not in _NEEDING_CARE for _, op_type in present):
        return _infer_strictly(proto, onnx.shape_inference.infer_shapes)
    unhandled = [(i, n.op_type) for i, n in enumerate(proto.graph.node) if n.op_type in _UNHANDLED]
    _set_operators(proto, [(i, "InstanceNormalization") for i, _ in unhandled])
    try:
        inferred = _infer_through_attention(proto)
    finally:
        _set_operators(proto, unhandled)
    _set_operators(inferred, unhandled)
    return inferred


def _infer_through_attention(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inference with function bodies in the place of `Attention`.

    Onnx's own takes a dimension that it does not know for 0 there, leaves past keys out of the scores, and
    infers rank 0 where it knows no rank.
    """
    if not any(node.op_type == "Attention" for node in all_nodes(proto.graph)):
        return _infer_strictly(proto)
    types = dict(types_of(infer_shapes(proto).graph))

    def has_body(node: onnx.NodeProto) -> bool:
        is_attention = node.op_type == "Attention" and node.domain in ("", "ai.onnx")
        return is_attention and types.get(node.input[0], onnx.TypeProto()).tensor_type.elem_type != 0

    calling, callees = call_bodies(proto, has_body, types)
    _drop_annotations(calling, types)
    inferred = _infer_strictly(calling)
    for node, original in zip(all_nodes(inferred.graph), all_nodes(proto.graph), strict=True):
        if node.domain == DOMAIN:
            node.CopyFrom(original)
    del inferred.functions[len(inferred.functions) - len(callees) :], inferred.opset_import[-1:]
    return inferred


def _drop_annotations(calling: onnx.ModelProto, types: Mapping[str, onnx.TypeProto]) -> None:
    """Let annotations not contradict the bodies: those of an exporter come from onnx's own inference."""
    inferable = {
        name
        for node in all_nodes(calling.graph)
        if node.domain == DOMAIN and types[node.input[0]].tensor_type.HasField("shape")
        for name in node.output
    }
    for value in (*calling.graph.value_info, *calling.graph.output):
        if value.name in inferable:
            value.type.tensor_type.ClearField("shape")


# It has nothing for the first, and fails on the default axes of the second.
_UNHANDLED = ("GroupNormalization", "MeanVarianceNormalization")
_NEEDING_CARE = (*_UNHANDLED, "Attention")


def _set_operators(proto: onnx.ModelProto, operators: list[tuple[int, str]]) -> None:
    for index, op_type in operators:
        proto.graph.node[index].op_type = op_type


def _infer_strictly(
    proto: onnx.ModelProto, infer_shapes: Callable[..., onnx.ModelProto] = infer_shapes
) -> onnx.ModelProto:
    try:
        return infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        # Propagating values fails on some valid graphs, such as Mul(Unsqueeze(x, [1]), y) of two vectors.
        try:
            infer_shapes(proto, strict_mode=True)
        except onnx.shape_inference.InferenceError as error:
            if not _is_in_branches(str(error)):
                raise
        return infer_shapes(proto, data_prop=True)


def _is_in_branches(error: str) -> bool:
    """Whether only branches of an `If` do not fit, such as one for another rank, which need not run."""
    errors = [line for line in error.partition("Inference error(s): ")[2].splitlines() if line.strip()]
    inside = [line for line in errors if re.match(_IN_A_BRANCH, line)]
    behind = [line for line in errors if re.search(_WITHOUT_TYPE, line)]
    return bool(inside) and len(inside) + len(behind) == len(errors)


_IN_A_BRANCH = r"\(op_type:If[^)]*\): \[\w+\] Inference error\(s\): "
_WITHOUT_TYPE = r"\[TypeInferenceError\] Input .* null"


def _without_annotations(proto: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return bare
