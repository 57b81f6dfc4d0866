"""Quantised models evaluated by PyTorch: its autograd, and its `fake_quantize`, give the expected gradients.

Integers are kept as floats, so that gradients flow through them: `QuantizeLinear` is a `fake_quantize`,
brought back to the integers that it rounded to. Scales and zero points that are computed count as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

Operands = Sequence[Tensor]


def torch_gradients(
    model: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    dy: np.ndarray,
    wrt: Sequence[str],
    levels: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The gradients of `wrt` for the cotangent `dy` of the first output.

    Integers are held at the `levels` that ONNX Runtime rounds to, which may be the neighbours at a tie.
    """
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | dict(inputs)
    values = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    for name in wrt:
        values[name].requires_grad_()
    for node in model.graph.node:
        operands = [values[name] for name in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        results = _OPERATORS[node.op_type](operands, attributes)
        values.update(zip(node.output, results if isinstance(results, tuple) else (results,), strict=True))
        first = node.output[0]
        if first in levels:
            moved = torch.from_numpy(levels[first].astype(np.float32)) - values[first].detach()
            assert moved.abs().max() <= 1.001, f"{node.op_type} {first} is another function"
            values[first] = values[first] + moved
    values[model.graph.output[0].name].backward(torch.from_numpy(dy))
    return {name: values[name].grad.numpy() for name in wrt}


def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The integers that x is rounded to, by PyTorch's `fake_quantize`."""
    low, high = (0, 255) if zero.dtype == torch.uint8 else (-128, 127)
    real = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)
    return torch.round(real / scale).detach() + (real - real.detach()) / scale + zero


def dequantize(levels: Tensor, scale: Tensor, zero: Tensor, axis: int = 1) -> Tensor:
    """What integers stand for, by one scale or one for each position of an axis."""
    behind = [1] * (levels.ndim - 1 - axis % levels.ndim)
    if scale.ndim and scale.numel() > 1:
        scale, zero = scale.reshape(-1, *behind), zero.reshape(-1, *behind)
    return (levels.float() - zero) * scale


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, attributes: Mapping[str, Any]) -> Tensor:
    pads = attributes["pads"]
    return functional.conv2d(x, w, bias, attributes["strides"], pads[: len(pads) // 2])


def _dynamic(operands: Operands, attributes: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    x = operands[0].detach()
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).clamp(0, 255).to(torch.uint8)
    return quantize(operands[0], scale, zero), scale, zero


def _qlinear_conv(operands: Operands, attributes: Mapping[str, Any]) -> Tensor:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = operands
    y = _convolve(
        dequantize(x, x_scale, x_zero),
        dequantize(w, w_scale, w_zero, 0),
        bias * (x_scale * w_scale),
        attributes,
    )
    return quantize(y, y_scale, y_zero)


def _qgemm(operands: Operands, attributes: Mapping[str, Any]) -> Tensor:
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = operands
    b = dequantize(b, b_scale, b_zero, 0)
    y = dequantize(a, a_scale, a_zero) @ b.T + c * (a_scale * b_scale)
    return quantize(y, y_scale, y_zero)


def _average(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    return functional.avg_pool2d(x, attributes["kernel_shape"], attributes["strides"])


def _qlinear_average_pool(operands: Operands, attributes: Mapping[str, Any]) -> Tensor:
    x, x_scale, x_zero, y_scale, y_zero = operands
    return quantize(_average(dequantize(x, x_scale, x_zero), attributes), y_scale, y_zero)


_OPERATORS: dict[str, Callable[[Operands, Mapping[str, Any]], Any]] = {
    "Add": lambda o, a: o[0] + o[1],
    "AveragePool": lambda o, a: _average(o[0], a),
    "BatchNormalization": lambda o, a: functional.batch_norm(o[0], o[3], o[4], o[1], o[2], eps=a["epsilon"]),
    "Cast": lambda o, a: o[0],
    "Conv": lambda o, a: _convolve(*o, a),
    "ConvInteger": lambda o, a: _convolve(o[0] - o[2], o[1].float() - o[3], None, a),
    "DequantizeLinear": lambda o, a: dequantize(*o, a.get("axis", 1)),
    "DynamicQuantizeLinear": _dynamic,
    "Gemm": lambda o, a: o[0] @ o[1].T + o[2],
    "MatMulInteger": lambda o, a: (o[0] - o[2]) @ (o[1].float() - o[3]),
    "MaxPool": lambda o, a: functional.max_pool2d(o[0], a["kernel_shape"], a["strides"]),
    "Mul": lambda o, a: o[0] * o[1],
    "QGemm": _qgemm,
    "QLinearAveragePool": _qlinear_average_pool,
    "QLinearConv": _qlinear_conv,
    "QuantizeLinear": lambda o, a: quantize(*o),
    "Relu": lambda o, a: torch.relu(o[0]),
    "Reshape": lambda o, a: o[0].reshape(*o[1].tolist()),
}
