"""From opset 6 to 7, where operands began to broadcast as in numpy.

onnx's converter makes this one step only where every dimension is static, and it keeps the slope of `PRelu`
where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

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


# Nodes of opset 18, which version conversion leaves alone.
LIFTED = "onnx_grad.lifted"


def from_opset_6(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the opset-6 model `proto` at opset 7, with nodes of opset 18 in the domain `LIFTED`.

    Raises:
        ModelError: A node has a training form that opset 7 does not know.
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


def _lifted(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
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
        # The slope is a vector along the channels, or a single number.
        yield from _aligned(node, 1, set(), ranks)
    else:
        yield _without(node, _GONE.get(node.op_type, set()))


def _aligned(
    node: onnx.NodeProto, axis: int, gone: set[str], ranks: Mapping[str, int]
) -> Iterator[onnx.NodeProto]:
    """The node with axes of size one appended to its second operand, which began at `axis` of the first.

    A negative axis means that the operands end together.
    """
    aligned = _without(node, gone)
    if axis >= 0:
        (first, second), name = node.input, f"{node.output[0]}/aligned"
        rank, operand_rank = ranks.get(first), ranks.get(second)
        if rank is None or operand_rank is None:
            yield from _aligning(first, second, axis, name)
            aligned.input[1] = name
        elif trailing := list(range(operand_rank, rank - axis)):
            yield onnx.helper.make_node("Unsqueeze", [second], [name], name=name, axes=trailing)
            aligned.input[1] = name
    yield aligned


def _aligning(first: str, second: str, axis: int, name: str) -> Iterator[onnx.NodeProto]:
    """`second` with rank(first) − axis − rank(second) axes of size one appended, if that is positive."""
    for op_type, inputs, result, attributes in (
        ("Shape", [first], "/behind_axis", {"start": axis}),
        ("Shape", [f"{name}/behind_axis"], "/rank", {}),
        ("Shape", [second], "/own_shape", {}),
        ("Shape", [f"{name}/own_shape"], "/own_rank", {}),
        ("Sub", [f"{name}/rank", f"{name}/own_rank"], "/difference", {}),
        ("Constant", [], "/zero", {"value_ints": [0]}),
        ("Max", [f"{name}/difference", f"{name}/zero"], "/missing", {}),
        ("Constant", [], "/one", {"value_ints": [1]}),
        ("Expand", [f"{name}/one", f"{name}/missing"], "/ones", {}),
        ("Concat", [f"{name}/own_shape", f"{name}/ones"], "/shape", {"axis": 0}),
        ("Reshape", [second, f"{name}/shape"], "", {"allowzero": 1}),
    ):
        output = name + result
        yield onnx.helper.make_node(
            op_type, inputs, [output], name=output, domain=LIFTED, **cast(dict[str, Any], attributes)
        )


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
