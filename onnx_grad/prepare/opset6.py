"""From opset 6 to 7, where operands began to broadcast as in numpy.

onnx's converter makes this one step only where every dimension is static, and it keeps the slope of `PRelu`
where it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnx_grad.errors import ModelError
from onnx_grad.prepare.infer import infer

# Attributes that opset 7 no longer has. `Dropout` without `is_test` is the identity, as in ONNX Runtime.
_GONE = {
    "Gemm": {"broadcast"},
    "Dropout": {"is_test"},
    "BatchNormalization": {"is_test", "consumed_inputs"},
    "GRU": {"output_sequence"},
    "LSTM": {"output_sequence"},
    "RNN": {"output_sequence"},
}
_ALIGNED_AT_AXIS = {"Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"}


def from_opset_6(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the opset-6 model `proto` at opset 7.

    Raises:
        ModelError: A node needs a rank that is unknown, or has a training form that opset 7 does not know.
    """
    ranks = dict(_ranks(infer(proto).graph))
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    for node in proto.graph.node:
        result.graph.node.extend(_lifted(node, ranks))
    for opset in result.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = 7
    return result


def _lifted(node: onnx.NodeProto, ranks: dict[str, int]) -> Iterator[onnx.NodeProto]:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "BatchNormalization" and not attributes.get("is_test", 0):
        raise ModelError(
            f"node '{node.name}' is a BatchNormalization of opset 6 in training mode; "
            "export the model for inference, or with opset 15 or newer"
        )
    if node.op_type in _ALIGNED_AT_AXIS:
        axis = attributes.get("axis", -1) if attributes.get("broadcast", 0) else -1
        yield from _aligned(node, axis, {"axis", "broadcast"}, ranks)
    elif node.op_type == "PRelu":
        yield from _aligned(node, 1 if ranks.get(node.input[1]) == 1 else -1, set(), ranks)
    else:
        yield _without(node, _GONE.get(node.op_type, set()))


def _aligned(
    node: onnx.NodeProto, axis: int, gone: set[str], ranks: dict[str, int]
) -> Iterator[onnx.NodeProto]:
    """The node with axes of size one appended to its second operand, which began at `axis` of the first."""
    aligned = _without(node, gone)
    trailing = _trailing_axes(node, axis, ranks) if axis >= 0 else []
    if trailing:
        name = f"{node.output[0]}/aligned"
        yield onnx.helper.make_node("Unsqueeze", [node.input[1]], [name], name=name, axes=trailing)
        aligned.input[1] = name
    yield aligned


def _trailing_axes(node: onnx.NodeProto, axis: int, ranks: dict[str, int]) -> list[int]:
    unknown = [name for name in node.input if name not in ranks]
    if unknown:
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) broadcasts along axis {axis} as opset 6 does, which needs "
            f"the rank of '{unknown[0]}', and that is unknown; give the model's inputs a shape"
        )
    rank, operand_rank = ranks[node.input[0]], ranks[node.input[1]]
    return list(range(operand_rank, rank - axis))


def _without(node: onnx.NodeProto, gone: set[str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    copy.attribute.extend(attribute for attribute in node.attribute if attribute.name not in gone)
    return copy


def _ranks(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            yield value.name, len(value.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        yield tensor.name, len(tensor.dims)
