"""The standard's training operators, which are lowered before anything is differentiated."""

from __future__ import annotations

from onnx.defs import AI_ONNX_PREVIEW_TRAINING_DOMAIN

from onnx_grad.registry import refused

refused(
    "Adagrad",
    "Adam",
    "Gradient",
    "Momentum",
    domain=AI_ONNX_PREVIEW_TRAINING_DOMAIN,
    reason="no runtime has a kernel for it; onnx_grad.lower replaces it by standard operators",
)
