"""Image networks of opset 9 evaluated by PyTorch, so that its autograd is an oracle for their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
F = torch.nn.functional

Attributes = Mapping[str, Any]


def evaluate(model: onnx.ModelProto, inputs: Mapping[str, Any], wanted: str) -> Any:
    """The tensor `wanted` of `model`; `inputs` and initializers are given by name as torch tensors."""
    values = dict(inputs)
    for tensor in model.graph.initializer:
        if tensor.name not in values:
            values[tensor.name] = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        operands = [values[name] for name in node.input]
        values[node.output[0]] = OPERATORS[node.op_type](operands, attributes)
        if wanted in node.output:
            break
    return values[wanted]


def _padded(x: Any, attributes: Attributes, value: float = 0.0) -> Any:
    """`x` with the pads of a window operator; torch lists them from the last axis to the first."""
    pads = attributes.get("pads", [0, 0, 0, 0])
    return F.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=value)


def _conv(operands: Sequence[Any], attributes: Attributes) -> Any:
    return F.conv2d(
        _padded(operands[0], attributes),
        *operands[1:],
        stride=tuple(attributes.get("strides", (1, 1))),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=attributes.get("group", 1),
    )


def _max_pool(operands: Sequence[Any], attributes: Attributes) -> Any:
    x = _padded(operands[0], attributes, float("-inf"))
    return F.max_pool2d(x, tuple(attributes["kernel_shape"]), tuple(attributes.get("strides", (1, 1))))


def _average_pool(operands: Sequence[Any], attributes: Attributes) -> Any:
    kernel, strides = tuple(attributes["kernel_shape"]), tuple(attributes.get("strides", (1, 1)))

    def total(x: Any) -> Any:
        return F.avg_pool2d(_padded(x, attributes), kernel, strides, divisor_override=1)

    return total(operands[0]) / total(torch.ones_like(operands[0]))


def _batch_normalization(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, bias, mean, variance = operands
    epsilon = attributes.get("epsilon", 1e-5)
    shape = (1, -1, 1, 1)
    factor = (scale / torch.sqrt(variance + epsilon)).reshape(shape)
    return (x - mean.reshape(shape)) * factor + bias.reshape(shape)


def _gemm(operands: Sequence[Any], attributes: Attributes) -> Any:
    a, b, c = operands
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    return attributes.get("alpha", 1.0) * (a @ b) + attributes.get("beta", 1.0) * c


def _reshape(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, shape = operands
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)])


def _unsqueeze(operands: Sequence[Any], attributes: Attributes) -> Any:
    (x,) = operands
    for axis in sorted(attributes["axes"]):
        x = x.unsqueeze(axis)
    return x


def _softmax(operands: Sequence[Any], attributes: Attributes) -> Any:
    (x,) = operands
    axis = attributes.get("axis", 1)
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


OPERATORS: dict[str, Callable[[Sequence[Any], Attributes], Any]] = {
    "Add": lambda operands, _: operands[0] + operands[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Concat": lambda operands, attributes: torch.cat(list(operands), attributes["axis"]),
    "Conv": _conv,
    "Dropout": lambda operands, _: operands[0],
    "Gemm": _gemm,
    "GlobalAveragePool": lambda operands, _: operands[0].mean((2, 3), keepdim=True),
    "LRN": lambda operands, a: F.local_response_norm(
        operands[0], a["size"], a["alpha"], a["beta"], a["bias"]
    ),
    "MaxPool": _max_pool,
    "Mul": lambda operands, _: operands[0] * operands[1],
    "Relu": lambda operands, _: torch.relu(operands[0]),
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Sum": lambda operands, _: sum(operands[1:], operands[0]),
    "Transpose": lambda operands, attributes: operands[0].permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
