"""Wrong ranks of loop states.

PyTorch's exporter takes the slices that `unbind` gives for tensors of one axis more, and declares what is
computed from them accordingly.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnx_grad.prepare.expand import types_of
from onnx_grad.prepare.validate import all_nodes


def forget_wrong_state_shapes(proto: onnx.ModelProto) -> bool:
    """Drop the declared shape of a `Loop` state that starts with another rank, and what rests on it.

    Args:
        proto: A model with inferred types; it is changed.

    Returns:
        Whether there was any; then shapes have to be inferred again.
    """
    loops = [n for n in all_nodes(proto.graph) if n.op_type == "Loop" and n.domain in ("", "ai.onnx")]
    types = dict(types_of(proto.graph)) if loops else {}
    wrong = [value for node in loops for value in _wrong(node, types)]
    for value in wrong:
        value.ClearField("shape")
    return bool(wrong)


def _wrong(node: onnx.NodeProto, types: dict[str, onnx.TypeProto]) -> Iterator[onnx.TypeProto.Tensor]:
    """The wrong types: of states, of results of the body, and of what the loop ends with."""
    (body,) = (attribute.g for attribute in node.attribute if attribute.name == "body")
    states = [(initial, i) for i, initial in enumerate(node.input[2:]) if initial in types]
    wrong = [i for initial, i in states if _differ_in_rank(types[initial], body.input[2 + i].type)]
    if wrong:
        yield from (value.type.tensor_type for value in (*body.value_info, *body.output) if _has_shape(value))
    for i in wrong:
        final = types.get(node.output[i], onnx.TypeProto()) if i < len(node.output) else onnx.TypeProto()
        if not _differ_in_rank(final, body.input[2 + i].type):
            yield final.tensor_type
        yield body.input[2 + i].type.tensor_type


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def _differ_in_rank(a: onnx.TypeProto, b: onnx.TypeProto) -> bool:
    known = a.tensor_type.HasField("shape") and b.tensor_type.HasField("shape")
    return bool(known and len(a.tensor_type.shape.dim) != len(b.tensor_type.shape.dim))
