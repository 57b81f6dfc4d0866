"""Checking gradients against finite differences of the model itself."""

from onnx_grad.checking.check import check_gradients
from onnx_grad.checking.report import GradientReport

__all__ = ["GradientReport", "check_gradients"]
