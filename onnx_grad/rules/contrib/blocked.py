"""Operators on images in blocks of channels, as ONNX Runtime's optimizer leaves them at its highest level."""

from __future__ import annotations

from onnx_grad.registry import refused

refused(
    "AveragePool",
    "Conv",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "ReorderInput",
    "ReorderOutput",
    "Upsample",
    domain="com.microsoft.nchwc",
    reason="the optimizer has laid out images and weights for the machine it ran on, in blocks whose size "
    "the file does not tell; save the model at the level ORT_ENABLE_EXTENDED instead of ORT_ENABLE_ALL",
)
