"""Fresh random weights, for a model that is to learn from nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.errors import UnknownNameError

Array: TypeAlias = np.ndarray[Any, Any]

_NORMALIZATIONS = frozenset(
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization RMSNormalization "
    "SimplifiedLayerNormalization".split()
)
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def initial_weights(graph: ir.Graph, names: Iterable[str], seed: int) -> dict[str, Array]:
    """Weights as PyTorch's layers start with: uniform up to 1/√(fan-in), scales one, biases zero.

    Args:
        graph: A forward graph.
        names: Initializers of it; what they are is told by the nodes that read them.
        seed: What they are drawn by.

    Raises:
        UnknownNameError: There is no such initializer.
    """
    weights = {}
    for index, name in enumerate(names):
        if name not in graph.initializers:
            raise UnknownNameError.near("weights", name, graph.initializers, "initializer")
        value = graph.initializers[name]
        rng = np.random.default_rng([seed, index])
        weights[name] = _drawn(value, rng).astype(np.float32)
    return weights


def _drawn(value: ir.Value, rng: np.random.Generator) -> Array:
    shape = () if value.const_value is None else value.const_value.shape.numpy()
    node, index, transposed = _reader(value)
    kind = "" if node is None else node.op_type
    if kind in _NORMALIZATIONS:
        # Scale and variance are ones, bias and mean zeros.
        return np.ones(shape) if index in (1, 4) else np.zeros(shape)
    if kind == "PRelu" and index == 1:
        return np.full(shape, 0.25)
    if kind == "Gather" and index == 0:
        return rng.normal(size=shape)
    if len(shape) < 2:
        return np.ones(shape) if kind == "Mul" else np.zeros(shape)
    fan_in = _fan_in(node, index, tuple(shape[::-1] if transposed else shape))
    bound = 1.0 / math.sqrt(max(fan_in, 1))
    return rng.uniform(-bound, bound, shape)


def _reader(value: ir.Value) -> tuple[ir.Node | None, int, bool]:
    """The first node that reads a weight, which of its inputs it is, and whether it is transposed before."""
    transposed = False
    for _ in range(8):
        uses = value.uses()
        if not uses:
            return None, 0, transposed
        node, index = next(iter(uses))
        if node.op_type not in ("Cast", "Identity", "Transpose", "Unsqueeze"):
            return node, index, transposed
        transposed ^= node.op_type == "Transpose"
        value = node.outputs[0]
    return None, 0, transposed


def _fan_in(node: ir.Node | None, index: int, shape: tuple[int, ...]) -> int:
    """How many inputs add up to one output of a layer."""
    if node is None:
        return shape[-2]
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return shape[0] * math.prod(shape[2:])
    if node.op_type in _RECURRENT:
        return node.attributes.get_int("hidden_size", shape[-1])
    if node.op_type == "Gemm":
        flag = "transB" if index == 1 else "transA"
        rows_are_inputs = (index == 1) ^ bool(node.attributes.get_int(flag, 0))
        return shape[-2] if rows_are_inputs else shape[-1]
    return shape[-2] if index == 1 else shape[-1]
