"""Forward mode: the Jacobian-vector product, and the Hessian-vector product over it."""

from __future__ import annotations

import warnings
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad import tidy
from onnx_grad.builder import Builder
from onnx_grad.errors import NoPathWarning, callers_level
from onnx_grad.forward_mode import Push
from onnx_grad.path import Path
from onnx_grad.prepare import Model, prepare
from onnx_grad.registry import Quantization
from onnx_grad.saving import check_target
from onnx_grad.selection import Names, Selection
from onnx_grad.transforms.reverse import check_scalar, differentiate, one
from onnx_grad.transforms.tracing import (
    PathLike,
    builder,
    deliver,
    garbage_collector_paused,
    new_input,
    requested,
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
        metadata = push_forward(forward.model, selection, path)
        return deliver(forward, model, metadata, save_as)


def push_forward(model: ir.Model, selection: Selection, path: Path) -> dict[str, dict[str, str]]:
    """Append the tangents to `model`; returns the names of the new inputs and outputs."""
    graph = model.graph
    op = builder(graph, pushes=True)
    seeds = {x: new_input(op, graph, x, "tangent") for x in requested(selection, path)}
    op.asked_for = frozenset((*selection.of, *seeds))
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


@overload
def hvp(
    model: ir.Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def hvp(
    model: PathLike | onnx.ModelProto,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def hvp(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The Hessian-vector product of a scalar: Σ over x₂ in `wrt` of ∂²y/∂x∂x₂ · ẋ₂, for each x in `wrt`.

    It is the tangent of the gradient, forward over reverse: the Hessian itself is never formed.

    Args:
        model: As for `vjp`.
        wrt: As for `vjp`.
        of: As for `grad`.
        stop: As for `vjp`.
        quantization: As for `vjp`.
        save_as: As for `vjp`.

    Returns:
        A model of the kind that was given with all inputs of `model`, then one tangent input `<x>_tangent`
        for each `x` in `wrt`; and all outputs of `model`, then one output `<x>_hvp` for each `x`, of the
        shape and dtype of `x`. A name that is taken gets a numeric suffix; the model's metadata
        `pkg.onnx_grad.tangents` and `pkg.onnx_grad.hessian_products` hold the names as JSON.

    Raises:
        OnnxGradError: As for `grad`.

    Warns:
        NoPathWarning: `of` does not depend on some `x`, or its gradient does not vary.
    """
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        forward, selection, path = trace(prepare(model), wrt, of, stop, quantization)
        check_scalar(selection)
        gradients = differentiate(forward.model, selection, path, one)["gradients"]
        forward, selection, path = trace(
            forward.inferred(), list(gradients), list(gradients.values()), stop, quantization
        )
        metadata = push_forward(forward.model, selection, path)
        graph = forward.model.graph
        for value in [y for y in graph.outputs if y.name in gradients.values()]:
            graph.outputs.remove(value)
        op = builder(graph)
        products = {}
        for x, gradient in gradients.items():
            (product,) = (y for y in graph.outputs if y.name == metadata["output_tangents"][gradient])
            products[x] = product.name = op.unique_name(f"{x}_hvp")
        noted = {"tangents": metadata["tangents"], "hessian_products": products}
        return deliver(forward, model, noted, save_as)
