"""The five networks that are measured, each written once for both forms of `layers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from benchmarks.layers import Array, Layers, OnnxLayers


@dataclass(frozen=True)
class Network:
    """A network and the shape of its input.

    Attributes:
        name: How it is called on the command line.
        title: What it is, in a few words.
        shape: The shape of its input, the batch first.
        define: Builds it of layers.
    """

    name: str
    title: str
    shape: tuple[int, ...]
    define: Callable[[Layers, Any], Any]

    def onnx(self, weights_are_inputs: bool, dynamic_batch: bool = False) -> onnx.ModelProto:
        """The model with input `x` and output `y`.

        Args:
            weights_are_inputs: Whether its weights are graph inputs rather than initializers.
            dynamic_batch: Whether the batch is a symbol rather than a number.
        """
        layers = OnnxLayers(self.shape[0], self.shape[1:])
        y = self.define(layers, "x")
        return layers.model(y, "batch" if dynamic_batch else self.shape[0], weights_are_inputs)

    def weights(self) -> dict[str, Array]:
        """The weights by name."""
        layers = OnnxLayers(self.shape[0], self.shape[1:])
        self.define(layers, "x")
        return layers.weights.arrays

    def example(self) -> Array:
        """An input."""
        return np.random.default_rng(1).standard_normal(self.shape, dtype=np.float32)


def mlp(f: Layers, x: Any) -> Any:
    """784-1024-1024-10."""
    x = f.relu(f.linear(x, 784, 1024))
    x = f.relu(f.linear(x, 1024, 1024))
    return f.linear(x, 1024, 10)


def deep_mlp(f: Layers, x: Any) -> Any:
    """32 layers of width 256."""
    for _ in range(31):
        x = f.relu(f.linear(x, 256, 256))
    return f.linear(x, 256, 256)


def small_cnn(f: Layers, x: Any) -> Any:
    """Three convolutions, two of them pooled, and two linear layers."""
    x = f.max_pool(f.relu(f.conv(x, 3, 32, 3)), 2, 2)
    x = f.max_pool(f.relu(f.conv(x, 32, 64, 3)), 2, 2)
    x = f.relu(f.conv(x, 64, 64, 3))
    x = f.relu(f.linear(f.flatten(x), 64 * 8 * 8, 128))
    return f.linear(x, 128, 10)


def resnet18(f: Layers, x: Any) -> Any:
    """ResNet-18 with BatchNormalization as in inference."""

    def convolved(x: Any, inputs: int, outputs: int, kernel: int, stride: int) -> Any:
        return f.batch_norm(f.conv(x, inputs, outputs, kernel, stride), outputs)

    def block(x: Any, inputs: int, outputs: int, stride: int) -> Any:
        y = f.relu(convolved(x, inputs, outputs, 3, stride))
        y = convolved(y, outputs, outputs, 3, 1)
        shortcut = x if inputs == outputs else convolved(x, inputs, outputs, 1, stride)
        return f.relu(f.add(y, shortcut))

    x = f.max_pool(f.relu(convolved(x, 3, 64, 7, 2)), 3, 2, 1)
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        x = block(x, inputs, outputs, 1 if inputs == outputs else 2)
        x = block(x, outputs, outputs, 1)
    return f.linear(f.global_average(x), 512, 10)


def encoder(f: Layers, x: Any) -> Any:
    """Four pre-norm transformer layers, eight heads."""
    width, heads = 256, 8
    for _ in range(4):
        normal = f.layer_norm(x, width)
        query, key, value = (f.linear(normal, width, width) for _ in range(3))
        x = f.add(x, f.linear(f.attention(query, key, value, heads), width, width))
        hidden = f.gelu(f.linear(f.layer_norm(x, width), width, 4 * width))
        x = f.add(x, f.linear(hidden, 4 * width, width))
    return x


def depthwise_stack(f: Layers, x: Any) -> Any:
    """Depthwise convolutions, each followed by a pointwise one, as in MobileNet."""
    for inputs, outputs, stride in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)):
        x = f.relu(f.conv(x, inputs, inputs, 3, stride, group=inputs))
        x = f.relu(f.conv(x, inputs, outputs, 1))
    return f.linear(f.global_average(x), 256, 10)


def conv_stack(f: Layers, x: Any) -> Any:
    """Four 3×3 convolutions of 32 channels."""
    for _ in range(3):
        x = f.relu(f.conv(x, 32, 32, 3))
    return f.conv(x, 32, 32, 3)


NETWORKS = (
    Network("mlp", "MLP 784-1024-1024-10, batch 64", (64, 784), mlp),
    Network("cnn", "small CNN, 32×3×32×32", (32, 3, 32, 32), small_cnn),
    Network("resnet18", "ResNet-18 style, 4×3×112×112", (4, 3, 112, 112), resnet18),
    Network("encoder", "encoder, 4 layers, 8×128×256", (8, 128, 256), encoder),
    Network("depthwise", "depthwise stack, 8×32×56×56", (8, 32, 56, 56), depthwise_stack),
)
EXTRA = (
    Network("convstack", "four 3×3 convolutions, 8×32×32×32", (8, 32, 32, 32), conv_stack),
    Network("deepmlp", "MLP of 32 layers, 1024×256", (1024, 256), deep_mlp),
)
