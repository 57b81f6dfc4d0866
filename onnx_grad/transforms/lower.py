"""Lowering: the standard's training operators as operators of the default domain."""

from __future__ import annotations

from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad.lowering import lower_operators
from onnx_grad.prepare import Model, prepare
from onnx_grad.saving import check_target
from onnx_grad.transforms.tracing import PathLike, deliver, garbage_collector_paused


@overload
def lower(model: ir.Model, *, save_as: PathLike | None = None) -> ir.Model: ...
@overload
def lower(model: PathLike | onnx.ModelProto, *, save_as: PathLike | None = None) -> onnx.ModelProto: ...
def lower(model: Model, *, save_as: PathLike | None = None) -> onnx.ModelProto | ir.Model:
    """The model with standard operators in the place of `Gradient`, `Adam`, `Adagrad` and `Momentum`.

    Those are operators of the standard's domain `ai.onnx.preview.training`, for which ONNX Runtime has no
    kernels; the result runs on the stock wheel. What `Gradient` gives for a tensor `y` of several elements is
    the gradient of their sum.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        save_as: Where to write the result as well. Its external weights are shared with the original's.

    Returns:
        A model of the kind that was given (a `ModelProto` for a path), at opset 18 or later, with the inputs
        and outputs that it had. Its metadata `pkg.onnx_grad.lowered` holds the operator of each node that was
        replaced, as JSON.

    Raises:
        ModelError: The model is damaged or inconsistent, or a training operator is.
        UnknownNameError: A `Gradient` names a tensor that it does not see.
        NotDifferentiableError: A `Gradient` differentiates a tensor that is not of a float type.
        UnsupportedOpError: Operators that a `Gradient` differentiates have no derivative here; all of them
            are named.
        OutputError: `save_as` cannot be written.

    Warns:
        NoPathWarning: No path leads from some tensor in `xs` to `y`; its gradient is zeros.
    """
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        forward, lowered = lower_operators(prepare(model))
        return deliver(forward, model, {"lowered": lowered}, save_as)
