"""Reverse mode: the vector-Jacobian product and the gradient of a scalar."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad import known, tidy
from onnx_grad.backward import Cotangents, pull_back
from onnx_grad.builder import Builder
from onnx_grad.errors import NoPathWarning, NotDifferentiableError, callers_level
from onnx_grad.path import Path
from onnx_grad.prepare import Model, prepare
from onnx_grad.recomputation import BackwardPass, Recomputation, Recompute
from onnx_grad.registry import Quantization
from onnx_grad.saving import check_target
from onnx_grad.selection import Names, Selection
from onnx_grad.transforms.tracing import (
    PathLike,
    builder,
    deliver,
    garbage_collector_paused,
    new_input,
    requested,
    trace,
)

Seed = Callable[[Builder, ir.Graph, ir.Value], ir.Value]


@overload
def vjp(
    model: ir.Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def vjp(
    model: PathLike | onnx.ModelProto,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def vjp(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The vector-Jacobian product: dx = Σ over y in `of` of (∂y/∂x)ᵀ · dy.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        wrt: Names of graph inputs, initializers or intermediate tensors. `None` means every float input
            without a default value, `"parameters"` every float initializer that is a weight.
        of: Names of outputs or intermediate tensors; `None` means every float output.
        stop: Names of tensors that count as constants: no gradient flows through them.
        quantization: What is done where numbers are rounded to integers or eight bits, which has no useful
            derivative: `None` refuses it, `"straight-through"` takes rounding for the identity and gives zero
            where a number is clipped to the range (see `onnx_grad.rules.quantization`).
        recompute: What is not kept for the backward pass but computed again there: names of intermediate
            tensors; `"sqrt"`, for about √n segments of n tensors, of which only the beginnings are kept; or
            the bytes that all activations may take together, as `onnx_grad.peak_memory` estimates them.
        sizes: For `recompute`, what the symbols in the shapes of the inputs stand for: `{"batch": 32}`.
        save_as: Where to write the result as well. Its external weights are shared with the original's.

    Returns:
        A model of the kind that was given (a `ModelProto` for a path) with all inputs of `model`, then one
        cotangent input `<y>_grad` for each `y` in `of`, of the shape and dtype of `y`; and all outputs of
        `model`, then one output `<x>_grad` for each `x` in `wrt`, of the shape and dtype of `x`. A name that
        is taken gets a numeric suffix; the model's metadata `pkg.onnx_grad.gradients` and
        `pkg.onnx_grad.cotangents` hold the names as JSON.

    Raises:
        ModelError: The model is damaged or inconsistent.
        UnknownNameError: A name is not a tensor of the model.
        NotDifferentiableError: A named tensor is not of a float type.
        UnsupportedOpError: Operators on the way have no derivative here; all of them are named.
        InputError: What `recompute` asks for cannot be done.
        OutputError: `save_as` cannot be written.

    Warns:
        NoPathWarning: No path leads from some `x` to `of`; its gradient is zeros.
    """
    recomputation = Recomputation.asked(recompute, sizes)
    return _transform(model, wrt, of, stop, quantization, recomputation, save_as, _cotangent_input)


@overload
def grad(
    model: ir.Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def grad(
    model: PathLike | onnx.ModelProto,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def grad(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The gradient of a scalar: dx = ∂y/∂x for one `y` with a single element, of any rank.

    Args:
        model: As for `vjp`.
        wrt: As for `vjp`.
        of: The name of one output or intermediate tensor with one element; `None` where the model has only
            one float output.
        stop: As for `vjp`.
        quantization: As for `vjp`.
        recompute: As for `vjp`.
        sizes: As for `vjp`.
        save_as: As for `vjp`.

    Returns:
        The same as `vjp`, without cotangent inputs.

    Raises:
        NotDifferentiableError: `of` is not one tensor with one element. Where its shape is not known before
            the model runs, running the result fails instead.
        OnnxGradError: As for `vjp`.
    """
    recomputation = Recomputation.asked(recompute, sizes)
    return _transform(model, wrt, of, stop, quantization, recomputation, save_as, one)


def _transform(
    model: Model,
    wrt: Names,
    of: Names,
    stop: Names,
    quantization: Quantization | None,
    recomputation: Recomputation | None,
    save_as: PathLike | None,
    seed: Seed,
) -> onnx.ModelProto | ir.Model:
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        return _transformed(model, wrt, of, stop, quantization, recomputation, save_as, seed)


def _transformed(
    model: Model,
    wrt: Names,
    of: Names,
    stop: Names,
    quantization: Quantization | None,
    recomputation: Recomputation | None,
    save_as: PathLike | None,
    seed: Seed,
) -> onnx.ModelProto | ir.Model:
    forward = prepare(model)
    forward, selection, path = trace(forward, wrt, of, stop, quantization)
    if seed is one:
        check_scalar(selection)
    metadata = differentiate(forward.model, selection, path, seed, recomputation)
    return deliver(forward, model, metadata, save_as)


def differentiate(
    model: ir.Model,
    selection: Selection,
    path: Path,
    seed: Seed,
    recomputation: Recomputation | None = None,
) -> dict[str, dict[str, str]]:
    """Append the backward pass to `model`; returns the names of the new inputs and outputs."""
    graph = model.graph
    op = builder(graph)
    op.asked_for = frozenset((*selection.of, *requested(selection, path)))
    seeds = {y: seed(op, graph, y) for y in selection.of}
    cotangents = pull_back(op, path, graph, seeds.items())
    gradients = {x: _gradient(op, cotangents, x) for x in requested(selection, path)}
    names = {x: op.unique_name(f"{x.name}_grad") for x in gradients}
    outputs = [tidy.Output(names[x], dx, like=x) for x, dx in gradients.items()]
    tidy.insert(graph, op, outputs)
    if recomputation is not None:
        tidy.settle(model)
        recomputation.apply(model, BackwardPass(graph, op.nodes, selection.of, seeds.values()))
    return {
        "gradients": {str(x.name): name for x, name in names.items()},
        "cotangents": {str(y.name): str(dy.name) for y, dy in seeds.items() if dy.is_graph_input()},
    }


def _gradient(op: Builder, cotangents: Cotangents, x: ir.Value) -> ir.Value:
    """What arrived at `x`: zeros, with a warning, where nothing did."""
    dx = cotangents.get(x)
    if dx is None:
        warnings.warn(
            f"no differentiable path leads from '{x.name}' to of: its gradient is zeros",
            NoPathWarning,
            stacklevel=callers_level(),
        )
        with op.serving(str(x.name)):
            dx = op.zeros_like(x)
    return dx


def _cotangent_input(op: Builder, graph: ir.Graph, y: ir.Value) -> ir.Value:
    """A new graph input `<y>_grad` of the shape and dtype of `y`."""
    return new_input(op, graph, y, "grad")


def one(op: Builder, graph: ir.Graph, y: ir.Value) -> ir.Value:
    """The cotangent of a scalar: a one of its shape. Running fails where `y` has more elements."""
    del graph
    with op.serving(str(y.name)):
        return op.Reshape(op.scalar_like(1.0, y), op.shape(y), allowzero=1)


def check_scalar(selection: Selection) -> None:
    """See that there is one value to differentiate, and that it is not known to have more than one element.

    Raises:
        NotDifferentiableError: It is not so.
    """
    if len(selection.of) != 1:
        names = ", ".join(f"'{y.name}'" for y in selection.of)
        raise NotDifferentiableError(
            f"of: grad differentiates one scalar, but there are {len(selection.of)}: {names}; "
            "name one, or use vjp"
        )
    (y,) = selection.of
    if any(isinstance(d, int) and d != 1 for d in known.dimensions(y) or ()):
        raise NotDifferentiableError(
            f"of: grad differentiates a tensor with one element, but '{y.name}' has shape {y.shape}; "
            "name a scalar, or use vjp and give a cotangent"
        )
