"""Differentiate ONNX models: gradient graphs of standard operators for the stock ONNX Runtime."""

from importlib.metadata import version

from onnx_grad.checking import GradientReport, check_gradients
from onnx_grad.errors import (
    CheckpointError,
    DivergedError,
    InputError,
    ModelError,
    NoLayerWarning,
    NoPathWarning,
    NotDifferentiableError,
    OnnxGradError,
    OutputError,
    RuleError,
    RuntimeUnavailableError,
    UnknownNameError,
    UnsupportedOpError,
)
from onnx_grad.inspection import InspectionReport, inspect
from onnx_grad.layers import training_mode
from onnx_grad.memory import PeakMemory, peak_memory
from onnx_grad.registry import define_function, gradient
from onnx_grad.runtime import GradientFunction
from onnx_grad.transforms import grad, hessian, hvp, jacobian, jvp, lower, vjp, vmap

__version__ = version("onnx-grad")

__all__ = [
    "CheckpointError",
    "DivergedError",
    "GradientFunction",
    "GradientReport",
    "InputError",
    "InspectionReport",
    "ModelError",
    "NoLayerWarning",
    "NoPathWarning",
    "NotDifferentiableError",
    "OnnxGradError",
    "OutputError",
    "PeakMemory",
    "RuleError",
    "RuntimeUnavailableError",
    "UnknownNameError",
    "UnsupportedOpError",
    "check_gradients",
    "define_function",
    "grad",
    "gradient",
    "hessian",
    "hvp",
    "inspect",
    "jacobian",
    "jvp",
    "lower",
    "peak_memory",
    "training_mode",
    "vjp",
    "vmap",
]
