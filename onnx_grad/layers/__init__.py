"""Layers that behave differently in training: put into that mode in a model exported for inference."""

from onnx_grad.layers.training import training_mode

__all__ = ["training_mode"]
