"""Layers in two forms, so that a network is written once: as nodes of an ONNX model, and as PyTorch calls.

Both draw the same weights in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper

Array = npt.NDArray[np.float32]

OPSET = 18


class Weights:
    """Deterministic random weights by name, in the order in which they are asked for."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self.arrays: dict[str, Array] = {}

    def near(self, mean: float, spread: float, shape: Sequence[int], name: str) -> str:
        """The name of a new weight with normally distributed values."""
        name = f"{name}{len(self.arrays)}"
        values = self._generator.standard_normal(shape, dtype=np.float32)
        self.arrays[name] = np.float32(mean) + np.float32(spread) * values
        return name


class Layers(Protocol):
    """What networks are made of; values are of the form's own kind."""

    def linear(self, x: Any, inputs: int, outputs: int) -> Any:
        """x·W + b along the last axis."""

    def conv(self, x: Any, inputs: int, outputs: int, kernel: int, stride: int = 1, group: int = 1) -> Any:
        """Convolution with bias, padded so that stride 1 keeps the size."""

    def batch_norm(self, x: Any, channels: int) -> Any:
        """Normalization by running statistics."""

    def layer_norm(self, x: Any, width: int) -> Any:
        """Normalization over the last axis."""

    def attention(self, query: Any, key: Any, value: Any, heads: int) -> Any:
        """Softmax(q·kᵀ/√d)·v in each head."""

    def relu(self, x: Any) -> Any:
        """max(x, 0)."""

    def gelu(self, x: Any) -> Any:
        """x·Φ(x)."""

    def add(self, a: Any, b: Any) -> Any:
        """a + b."""

    def max_pool(self, x: Any, kernel: int, stride: int, padding: int = 0) -> Any:
        """Maxima of windows."""

    def flatten(self, x: Any) -> Any:
        """All axes but the first made one."""

    def global_average(self, x: Any) -> Any:
        """The mean over the image."""


class OnnxLayers:
    """Nodes as PyTorch's exporter writes them."""

    def __init__(self, batch: int, width: Sequence[int]) -> None:
        self.weights = Weights()
        self.statistics: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.x_shape = (batch, *width)
        self._is_flat = len(width) == 1

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        w = self.weights.near(0.0, math.sqrt(1.0 / inputs), (inputs, outputs), "linear_w")
        b = self.weights.near(0.0, 0.1, (outputs,), "linear_b")
        if self._is_flat:
            return self._node("Gemm", x, w, b)
        return self._node("Add", self._node("MatMul", x, w), b)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        shape = (outputs, inputs // group, kernel, kernel)
        w = self.weights.near(0.0, math.sqrt(2.0 / math.prod(shape[1:])), shape, "conv_w")
        b = self.weights.near(0.0, 0.1, (outputs,), "conv_b")
        pads = [kernel // 2] * 4
        sizes = [kernel] * 2
        return self._node("Conv", x, w, b, kernel_shape=sizes, strides=[stride] * 2, pads=pads, group=group)

    def batch_norm(self, x: str, channels: int) -> str:
        scale = self.weights.near(1.0, 0.1, (channels,), "norm_w")
        bias = self.weights.near(0.0, 0.1, (channels,), "norm_b")
        mean, variance = f"{scale}_mean", f"{scale}_variance"
        self.statistics[mean] = np.zeros(channels, np.float32)
        self.statistics[variance] = np.full(channels, 1.5, np.float32)
        return self._node("BatchNormalization", x, scale, bias, mean, variance)

    def layer_norm(self, x: str, width: int) -> str:
        scale = self.weights.near(1.0, 0.1, (width,), "norm_w")
        bias = self.weights.near(0.0, 0.1, (width,), "norm_b")
        return self._node("LayerNormalization", x, scale, bias, axis=-1)

    def attention(self, query: str, key: str, value: str, heads: int) -> str:
        head = self.x_shape[-1] // heads
        split = self._integers([0, 0, heads, head])

        def of_heads(x: str, perm: Sequence[int]) -> str:
            return self._node("Transpose", self._node("Reshape", x, split), perm=perm)

        q, v = (of_heads(x, [0, 2, 1, 3]) for x in (query, value))
        scores = self._node("MatMul", q, of_heads(key, [0, 2, 3, 1]))
        scaled = self._node("Mul", scores, self._number(1.0 / math.sqrt(head)))
        mixed = self._node("MatMul", self._node("Softmax", scaled, axis=-1), v)
        merged = self._node("Transpose", mixed, perm=[0, 2, 1, 3])
        return self._node("Reshape", merged, self._integers([0, 0, heads * head]))

    def relu(self, x: str) -> str:
        return self._node("Relu", x)

    def gelu(self, x: str) -> str:
        """As PyTorch's exporter writes it before opset 20."""
        erf = self._node("Erf", self._node("Div", x, self._number(math.sqrt(2.0))))
        phi = self._node("Mul", self._node("Add", erf, self._number(1.0)), self._number(0.5))
        return self._node("Mul", x, phi)

    def add(self, a: str, b: str) -> str:
        return self._node("Add", a, b)

    def max_pool(self, x: str, kernel: int, stride: int, padding: int = 0) -> str:
        sizes, pads = [kernel] * 2, [padding] * 4
        return self._node("MaxPool", x, kernel_shape=sizes, strides=[stride] * 2, pads=pads)

    def flatten(self, x: str) -> str:
        self._is_flat = True
        return self._node("Reshape", x, self._integers([0, -1]))

    def global_average(self, x: str) -> str:
        return self.flatten(self._node("GlobalAveragePool", x))

    def _node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def _integers(self, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, array: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def model(self, y: str, batch: int | str, weights_are_inputs: bool) -> onnx.ModelProto:
        """The finished model, from `x` to `y`."""
        tensor = onnx.helper.make_tensor_value_info
        (last,) = [node for node in self.nodes if y in node.output]
        last.output[0] = "y"
        inputs = [tensor("x", onnx.TensorProto.FLOAT, [batch, *self.x_shape[1:]])]
        constants = [*self.constants]
        for name, array in {**self.weights.arrays, **self.statistics}.items():
            if weights_are_inputs and name in self.weights.arrays:
                inputs.append(tensor(name, onnx.TensorProto.FLOAT, array.shape))
            else:
                constants.append(onnx.numpy_helper.from_array(array, name))
        outputs = [tensor("y", onnx.TensorProto.FLOAT, None)]
        graph = onnx.helper.make_graph(self.nodes, "network", inputs, outputs, constants)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9
        )
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        del inferred.graph.value_info[:]
        return inferred


class TorchLayers:
    """The same in PyTorch, eager, with its own kernels."""

    def __init__(self, requires_grad: bool) -> None:
        import torch

        self.torch, self.functional = torch, torch.nn.functional
        self.requires_grad = requires_grad
        self._source = Weights()
        self.weights: dict[str, Any] = {}
        self.turned: list[int] = []  # the positions of weights that are stored transposed
        self._next = 0

    def restart(self) -> None:
        """Begin the next forward pass: layers take the weights that they took in the first."""
        self._next = 0

    def _weight(self, mean: float, spread: float, shape: Sequence[int], turned: bool = False) -> Any:
        if self._next == len(self.weights):
            name = self._source.near(mean, spread, shape, "")
            array = self._source.arrays[name]
            content = np.ascontiguousarray(array.T) if turned else array
            self.weights[name] = self.torch.tensor(content, requires_grad=self.requires_grad)
            if turned:
                self.turned.append(self._next)
        self._next += 1
        return self.weights[str(self._next - 1)]

    def linear(self, x: Any, inputs: int, outputs: int) -> Any:
        w = self._weight(0.0, math.sqrt(1.0 / inputs), (inputs, outputs), turned=True)
        return self.functional.linear(x, w, self._weight(0.0, 0.1, (outputs,)))

    def conv(self, x: Any, inputs: int, outputs: int, kernel: int, stride: int = 1, group: int = 1) -> Any:
        shape = (outputs, inputs // group, kernel, kernel)
        w = self._weight(0.0, math.sqrt(2.0 / math.prod(shape[1:])), shape)
        b = self._weight(0.0, 0.1, (outputs,))
        return self.functional.conv2d(x, w, b, stride=stride, padding=kernel // 2, groups=group)

    def batch_norm(self, x: Any, channels: int) -> Any:
        scale, bias = self._weight(1.0, 0.1, (channels,)), self._weight(0.0, 0.1, (channels,))
        mean, variance = self.torch.zeros(channels), self.torch.full((channels,), 1.5)
        return self.functional.batch_norm(x, mean, variance, scale, bias)

    def layer_norm(self, x: Any, width: int) -> Any:
        scale, bias = self._weight(1.0, 0.1, (width,)), self._weight(0.0, 0.1, (width,))
        return self.functional.layer_norm(x, (width,), scale, bias)

    def attention(self, query: Any, key: Any, value: Any, heads: int) -> Any:
        batch, length, width = query.shape
        q, k, v = (x.view(batch, length, heads, width // heads).transpose(1, 2) for x in (query, key, value))
        mixed = self.functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).reshape(batch, length, width)

    def relu(self, x: Any) -> Any:
        return self.functional.relu(x)

    def gelu(self, x: Any) -> Any:
        return self.functional.gelu(x)

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def max_pool(self, x: Any, kernel: int, stride: int, padding: int = 0) -> Any:
        return self.functional.max_pool2d(x, kernel, stride, padding)

    def flatten(self, x: Any) -> Any:
        return x.flatten(1)

    def global_average(self, x: Any) -> Any:
        return self.functional.adaptive_avg_pool2d(x, 1).flatten(1)
