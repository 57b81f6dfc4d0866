"""Lowering: the standard's training operators as operators of the default domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad.lowering import lower_with_training_info
from onnx_grad.prepare import Model
from onnx_grad.prepare.load import load
from onnx_grad.saving import check_target, write_whole
from onnx_grad.transforms.tracing import PathLike, deliver, garbage_collector_paused


@overload
def lower(model: ir.Model, *, save_as: PathLike | None = None) -> ir.Model: ...
@overload
def lower(model: PathLike | onnx.ModelProto, *, save_as: PathLike | None = None) -> onnx.ModelProto: ...
def lower(model: Model, *, save_as: PathLike | None = None) -> onnx.ModelProto | ir.Model:
    """The model with standard operators in the place of `Gradient`, `Adam`, `Adagrad` and `Momentum`.

    Those are operators of the standard's domain `ai.onnx.preview.training`, for which ONNX Runtime has no
    kernels; the result runs on the stock wheel. What `Gradient` gives for a tensor `y` of several elements is
    the gradient of their sum. The training algorithms that a model carries in its `training_info` are lowered
    together with its graph, which they go on from; an `ir.Model` has none.

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
        forward, lowered, infos = lower_with_training_info(load(model))
        result = deliver(forward, model, {"lowered": lowered}, save_as)
        if infos and isinstance(result, onnx.ModelProto):
            result.training_info.extend(infos)
            if save_as is not None:
                _add_training_info(save_as, infos)
        return result


def _add_training_info(path: PathLike, infos: Sequence[onnx.TrainingInfoProto]) -> None:
    """Add what an `ir.Model` cannot hold to a file that was written without it."""
    saved = onnx.load_model(path, load_external_data=False)
    saved.training_info.extend(infos)
    write_whole(path, lambda file: file.write(saved.SerializeToString()))
