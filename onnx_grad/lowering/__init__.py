"""Lowering of the standard's training operators: `Gradient`, `Adam`, `Adagrad` and `Momentum`.

ONNX defines them in the domain `ai.onnx.preview.training`, and no runtime has kernels for them. Here they
become operators of the default domain: the optimizers by the formulas of their specification, `Gradient` by
differentiating what lies between the tensors that it names.
"""

from onnx_grad.lowering.operators import holds_training_operators, lower_operators
from onnx_grad.lowering.training_info import lower_with_training_info

__all__ = ["holds_training_operators", "lower_operators", "lower_with_training_info"]
