"""Rematerialisation: activations that the backward pass computes again rather than have them kept for it."""

from onnx_grad.recomputation.request import Recomputation, Recompute
from onnx_grad.recomputation.walk import BackwardPass

__all__ = ["BackwardPass", "Recomputation", "Recompute"]
