"""Forward mode: the Jacobian-vector product, and the Hessian-vector product over it."""

from __future__ import annotations

import warnings
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad import tidy
from onnx_grad.builder import Builder
from onnx_grad.errors import NoPathWarning
from onnx_grad.forward_mode import Push
from onnx_grad.path import Path
from onnx_grad.prepare import Model, prepare
from onnx_grad.prepare.lift import OLDEST_OPSET
from onnx_grad.registry import Quantization
from onnx_grad.saving import check_target
from onnx_grad.selection import Names, Selection
from onnx_grad.transforms.tracing import (
    PathLike,
    callers_level,
    deliver,
    garbage_collector_paused,
    new_input,
    requested,
    taken_names,
    trace,
)


@overload
def jvp(
    model: ir.Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def jvp(
    model: PathLike | onnx.ModelProto,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def jvp(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The Jacobian-vector product: ẏ = Σ over x in `wrt` of ∂y/∂x · ẋ.

    Args:
        model: As for `vjp`.
        wrt: As for `vjp`.
        of: As for `vjp`.
        stop: As for `vjp`.
        quantization: As for `vjp`.
        save_as: As for `vjp`.

    Returns:
        A model of the kind that was given with all inputs of `model`, then one tangent input `<x>_tangent`
        for each `x` in `wrt`, of the shape and dtype of `x`; and all outputs of `model`, then one output
        `<y>_tangent` for each `y` in `of`, of the shape and dtype of `y`. A name that is taken gets a numeric
        suffix; the model's metadata `pkg.onnx_grad.tangents` (of `wrt`) and `pkg.onnx_grad.output_tangents`
        (of `of`) hold the names as JSON.

    Raises:
        OnnxGradError: As for `vjp`.

    Warns:
        NoPathWarning: No path leads from `wrt` to some `y`; its tangent is zeros.
    """
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        forward, selection, path = trace(prepare(model), wrt, of, stop, quantization)
        metadata = _push(forward.model, selection, path)
        return deliver(forward, model, metadata, save_as)


def _push(model: ir.Model, selection: Selection, path: Path) -> dict[str, dict[str, str]]:
    """Add the tangents to `model`; returns the names of the new inputs and outputs."""
    graph = model.graph
    op = Builder(graph.opset_imports.setdefault("", OLDEST_OPSET), taken_names(graph), pushes=True)
    seeds = {x: new_input(op, graph, x, "tangent") for x in requested(selection, path)}
    push = Push(path)
    tangents = push.forward(op, graph, seeds.items())
    results = {y: _tangent(op, push, tangents, push.current(y)) for y in selection.of}
    names = {y: op.unique_name(f"{push.current(y).name}_tangent") for y in results}
    outputs = [tidy.Output(names[y], dy, like=push.current(y)) for y, dy in results.items()]
    tidy.insert(graph, op, outputs, push.roots())
    return {
        "tangents": {str(x.name): str(dx.name) for x, dx in seeds.items()},
        "output_tangents": {str(push.current(y).name): name for y, name in names.items()},
    }


def _tangent(op: Builder, push: Push, tangents: dict[ir.Value, ir.Value], y: ir.Value) -> ir.Value:
    """What arrived at `y`: zeros, with a warning, where nothing did."""
    tangent = tangents.get(y)
    if tangent is None:
        warnings.warn(
            f"no differentiable path leads from wrt to '{y.name}': its tangent is zeros",
            NoPathWarning,
            stacklevel=callers_level(),
        )
        with op.serving(str(y.name)):
            tangent = op.zeros_like(y)
    return tangent
