"""Jacobians and Hessians: all of their elements, in one model and one run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args, overload

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.errors import InputError
from onnx_grad.prepare import Model, prepare
from onnx_grad.registry import Quantization
from onnx_grad.saving import check_target
from onnx_grad.selection import Names
from onnx_grad.transforms.jacobian_rows import Request, by_columns, by_rows
from onnx_grad.transforms.tracing import PathLike, deliver, garbage_collector_paused, requested, trace

Mode: TypeAlias = Literal["auto", "reverse", "forward"]

# Stands for a dimension that is not known, where sizes are compared.
_TYPICAL_DIMENSION = 64


@overload
def jacobian(
    model: ir.Model,
    wrt: Names = None,
    of: Names = None,
    *,
    mode: Mode = "auto",
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def jacobian(
    model: PathLike | onnx.ModelProto,
    wrt: Names = None,
    of: Names = None,
    *,
    mode: Mode = "auto",
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def jacobian(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    mode: Mode = "auto",
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The Jacobian ∂yᵢ/∂xⱼ for each y in `of` and x in `wrt`.

    Args:
        model: As for `vjp`.
        wrt: As for `vjp`.
        of: As for `vjp`.
        mode: By rows (`"reverse"`: one for each element of y), by columns (`"forward"`: one for each element
            of x), or whichever are fewer (`"auto"`). All of them are one batch, for which the forward pass
            runs once.
        stop: As for `vjp`.
        quantization: As for `vjp`.
        save_as: As for `vjp`.

    Returns:
        A model of the kind that was given with all inputs of `model`; and all outputs of `model`, then one
        output `<y>_jacobian_<x>` for each y and each x, of the shape of y, then that of x, and the dtype of
        x. A name that is taken gets a numeric suffix; the model's metadata `pkg.onnx_grad.jacobians` holds
        the names as JSON, by y, then by x.

    Raises:
        InputError: There is no such mode.
        OnnxGradError: As for `vjp` and `vmap`.

    Warns:
        NoPathWarning: No path leads from some `x` to some `y`; that Jacobian is zeros.
    """
    if mode not in get_args(Mode):
        raise InputError(f"there is no mode '{mode}'; there is: {', '.join(map(repr, get_args(Mode)))}")
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        forward, selection, path = trace(prepare(model), wrt, of, stop, quantization)
        sources = requested(selection, path)
        wrt_names, of_names = ([str(value.name) for value in values] for values in (sources, selection.of))
        request = Request(wrt_names, of_names, stop, quantization)
        if mode == "auto":
            mode = "reverse" if _size(selection.of) <= _size(sources) else "forward"
        found = (by_rows if mode == "reverse" else by_columns)(forward, request)
        names: dict[str, dict[str, str]] = {y: {} for y in request.of}
        for (y, x), name in found.names.items():
            names[y][x] = name
        return deliver(found.forward, model, {"jacobians": names}, save_as)


@overload
def hessian(
    model: ir.Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def hessian(
    model: PathLike | onnx.ModelProto,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def hessian(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    stop: Names = (),
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The Hessian ∂²yᵢ/∂x₁ⱼ∂x₂ₖ for each y in `of` and all pairs x₁, x₂ in `wrt`, forward over reverse.

    Args:
        model: As for `vjp`.
        wrt: As for `vjp`.
        of: As for `vjp`; y need not be a scalar.
        stop: As for `vjp`.
        quantization: As for `vjp`.
        save_as: As for `vjp`.

    Returns:
        A model of the kind that was given with all inputs of `model`; and all outputs of `model`, then one
        output `<y>_hessian_<x1>_<x2>` for each y and each pair, of the shape of y, then those of x₁ and x₂.
        A name that is taken gets a numeric suffix; the model's metadata `pkg.onnx_grad.hessians` holds the
        names as JSON, by y, then by x₁, then by x₂.

    Raises:
        OnnxGradError: As for `vjp` and `vmap`.

    Warns:
        NoPathWarning: Some y does not depend on some x, or its gradient does not vary with it.
    """
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        forward, selection, path = trace(prepare(model), wrt, of, stop, quantization)
        wrt_names = [str(x.name) for x in requested(selection, path)]
        of_names = [str(y.name) for y in selection.of]
        first = by_rows(forward, Request(wrt_names, of_names, stop, quantization, "_hessian_"))
        gradients = list(first.names.values())
        second = by_columns(first.forward.inferred(), Request(wrt_names, gradients, stop, quantization, "_"))
        graph = second.forward.model.graph
        for value in [y for y in graph.outputs if y.name in gradients]:
            graph.outputs.remove(value)
        names: dict[str, dict[str, dict[str, str]]] = {}
        for (y, x1), gradient in first.names.items():
            names.setdefault(y, {})[x1] = {x2: second.names[gradient, x2] for x2 in wrt_names}
        return deliver(second.forward, model, {"hessians": names}, save_as)


def _size(values: Iterable[ir.Value]) -> int:
    """How many elements `values` have together, about."""
    return sum(
        math.prod(d if isinstance(d, int) else _TYPICAL_DIMENSION for d in known.dimensions(value) or ())
        for value in values
    )
