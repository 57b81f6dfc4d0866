"""The transforms: a few lines each over one path, load → prepare → differentiate → tidy."""

from onnx_grad.transforms.lower import lower
from onnx_grad.transforms.reverse import grad, vjp

__all__ = ["grad", "lower", "vjp"]
