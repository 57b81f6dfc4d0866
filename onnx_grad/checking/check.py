"""Gradients against finite differences of the model itself."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.checking.comparison import Check, Settings
from onnx_grad.checking.evaluators import EVALUATORS, EvaluatorName
from onnx_grad.checking.inputs import Range, complete_inputs
from onnx_grad.checking.own_precision import Shipped, compare, run_as_shipped
from onnx_grad.checking.progress import Progress
from onnx_grad.checking.report import GradientReport, OwnPrecision
from onnx_grad.checking.subject import Subject
from onnx_grad.errors import InputError, NotDifferentiableError
from onnx_grad.prepare import prepare
from onnx_grad.prepare.load import Model
from onnx_grad.registry import Quantization
from onnx_grad.selection import Names
from onnx_grad.sessions import Provider
from onnx_grad.signature import InputSpec, dtype_name, dtype_of, quoted, shape_text
from onnx_grad.transforms.tracing import trace


def check_gradients(
    model: Model,
    wrt: Names = None,
    of: Names = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    integer_ranges: Mapping[str, Range] | None = None,
    seed: int = 0,
    stop: Names = (),
    quantization: Quantization | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    evaluator: EvaluatorName | None = None,
    providers: Sequence[Provider] | None = None,
    max_coordinates: int = 64,
    random_directions: int = 3,
    time_limit: float = 120.0,
    progress: Progress | None = None,
) -> GradientReport:
    """Compare the gradient graph of a model with finite differences of the model itself.

    The outputs in `of` are weighted with random cotangents and added up. The derivative of that sum along
    every coordinate of a small tensor, and along random directions of a large one, is compared with what
    the gradient graph gives, both in float64 where that is possible. Then the gradient graph in the model's
    own type, as it ships, is compared with the one in float64.

    Args:
        model: A path, an `onnx.ModelProto` or an `ir.Model`; it is not changed.
        wrt: What to differentiate with respect to, as for `onnx_grad.vjp`.
        of: What to differentiate, as for `onnx_grad.vjp`.
        inputs: Arrays by input name. What is missing is made up: floats standard normal, booleans fair
            coins, integers from their range.
        dims: Sizes for symbolic dimensions of inputs that are made up; small distinct ones by default.
        integer_ranges: The half-open range of integer inputs that are made up, (0, 2) by default.
        seed: Seed of everything random.
        stop: Tensors that count as constants, in the gradient graph and in the finite differences.
        quantization: As for `onnx_grad.vjp`. Gradients that pass straight through rounding are not those of
            the model, whose finite differences are zeros and jumps: it is an error where numbers are rounded
            on the way.
        rtol: Tolerance relative to the two derivatives compared, instead of the one for their precision.
        atol: Absolute tolerance, likewise.
        evaluator: `"onnxruntime-float64"`, `"reference-float64"` or `"onnxruntime-float32"`, instead of the
            best that can evaluate the model and, for the reference evaluator, in time.
        providers: ONNX Runtime's list of execution providers for the gradient graph as it ships.
        max_coordinates: Up to how many elements every coordinate of a tensor is checked.
        random_directions: Along how many random directions a larger tensor is checked.
        time_limit: Seconds that finite differences may take with the reference evaluator. From a quarter of
            that on, fewer steps are taken; beyond, ONNX Runtime evaluates the model in float32.
        progress: Called with what is done, the total, and the tensor at hand; by default a bar on stderr
            when that is a terminal.

    Returns:
        A `GradientReport`. `report.passed` is the verdict, `print(report)` shows it.

    Raises:
        NotDifferentiableError: Numbers are rounded on the way from `wrt` to `of`.
        OnnxGradError: As `onnx_grad.vjp`; and where an input cannot be made up, does not fit, or leads to
            outputs that are not finite, or where nothing can evaluate the model.
    """
    if evaluator is not None and evaluator not in EVALUATORS:
        raise InputError(f"there is no evaluator '{evaluator}'; there are: {quoted(EVALUATORS)}")
    if quantization is not None:
        _check_unrounded(model, wrt, of, stop, quantization)
    start = time.perf_counter()
    settings = Settings(seed, rtol, atol, evaluator, max_coordinates, random_directions, time_limit)
    subject = Subject.of_model(model, wrt, of, stop)
    specs = [InputSpec.of(value) for value in subject.model.graph.inputs]
    point = complete_inputs(specs, inputs or {}, dims or {}, integer_ranges or {}, settings.generator(0))
    report = check_at(point, subject, settings, providers, progress)
    return dataclasses.replace(report, model=_label(model, subject), seconds=time.perf_counter() - start)


def _check_unrounded(model: Model, wrt: Names, of: Names, stop: Names, quantization: Quantization) -> None:
    path = trace(prepare(model), wrt, of, stop, quantization)[2]
    rounding = [f"'{step.node.name}' ({step.node.op_type})" for step in path.all_steps() if step.is_quantized]
    if rounding:
        more = f" and {len(rounding) - 3} more" if len(rounding) > 3 else ""
        raise NotDifferentiableError(
            f"finite differences do not apply: {', '.join(rounding[:3])}{more} compute with rounded numbers, "
            f"so that the model is a staircase, and {quantization} gradients are not its derivatives; check "
            "the model before it is quantized, or cut the flow with stop=[…]"
        )


def check_at(
    point: dict[str, Any],
    subject: Subject,
    settings: Settings,
    providers: Sequence[Provider] | None = None,
    progress: Progress | None = None,
) -> GradientReport:
    """Compare the gradient graph of a subject with finite differences at one of several points.

    Args:
        point: A value for every required input, of its type.
        subject: The model with what is to be checked in it.
        settings: What to do.
        providers: As for `check_gradients`.
        progress: As for `check_gradients`.

    Raises:
        OnnxGradError: As `check_gradients`.
    """
    start = time.perf_counter()
    check = Check(subject, point, settings)
    tensors = check.finite_differences(progress)
    shipped = run_as_shipped(subject, point, check.cotangents, providers)
    if shipped.gradients is not None:
        tensors = [
            dataclasses.replace(tensor, own_precision=_compared(check, shipped, tensor.name))
            for tensor in tensors
        ]
    return GradientReport(
        model=subject.model.graph.name or "model",
        of=subject.of,
        inputs={name: _kind(value) for name, value in point.items()},
        seed=settings.seed,
        tensors=tuple(tensors),
        evaluators=(*check.notes, shipped.note),
        problem=shipped.problem,
        seconds=time.perf_counter() - start,
    )


def _compared(check: Check, shipped: Shipped, name: str) -> OwnPrecision:
    """The gradient as it ships; its rounding noise is measured only where it is not within tolerance."""
    assert shipped.gradients is not None
    settings = check.settings
    judged = partial(
        compare,
        shipped.gradients[name],
        check.gradients[name],
        size=check.natural_size(name),
        rtol=settings.rtol,
        atol=settings.atol,
    )
    found = judged()
    if found.passed:
        return found
    return judged(noise=max(shipped.noise.get(name, 0.0), check.rounding_noise(name)))


def _label(model: Model, subject: Subject) -> str:
    if isinstance(model, (onnx.ModelProto, ir.Model)):
        return subject.model.graph.name or "model"
    return os.path.basename(os.fspath(model))


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{dtype_name(dtype_of(value))}{shape_text(value.shape)}"
    return type(value).__name__
