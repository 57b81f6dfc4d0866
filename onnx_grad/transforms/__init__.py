"""The transforms: a few lines each over one path, load → prepare → differentiate → tidy."""

from onnx_grad.transforms.forward import hvp, jvp
from onnx_grad.transforms.jacobians import hessian, jacobian
from onnx_grad.transforms.lower import lower
from onnx_grad.transforms.reverse import grad, vjp
from onnx_grad.transforms.vmap import vmap

__all__ = ["grad", "hessian", "hvp", "jacobian", "jvp", "lower", "vjp", "vmap"]
