"""The batching rules, by operator family. Importing this package fills the table."""

from onnx_grad.batching.rules import (
    convolution,
    folding,
    indexing,
    movement,
    normalization,
    pointwise,
    products,
    random,
    recurrent,
    reductions,
    resampling,
    sequences,
    shapes,
)

__all__ = [
    "convolution",
    "folding",
    "indexing",
    "movement",
    "normalization",
    "pointwise",
    "products",
    "random",
    "recurrent",
    "reductions",
    "resampling",
    "sequences",
    "shapes",
]
