"""The gradient rules of ONNX Runtime's own operators, one module per family."""

from onnx_grad.rules.contrib import (
    attention,
    biases,
    blocked,
    convolution,
    gelu,
    grouped_attention,
    normalization,
    products,
    quantized,
    quantized_operators,
    rotary_embedding,
    tensors,
)

__all__ = [
    "attention",
    "biases",
    "blocked",
    "convolution",
    "gelu",
    "grouped_attention",
    "normalization",
    "products",
    "quantized",
    "quantized_operators",
    "rotary_embedding",
    "tensors",
]
