"""One tensor's gradient against finite differences along a few lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnx_grad.checking.directions import Direction, length_scale
from onnx_grad.checking.evaluators import Evaluator
from onnx_grad.checking.finite_differences import Derivative, Point, Sweep, differentiate_by
from onnx_grad.checking.noise import ALLOWANCE
from onnx_grad.checking.report import Probe, TensorReport
from onnx_grad.checking.tolerances import NEGLIGIBLE_GRADIENT, Tolerance

Array: TypeAlias = np.ndarray[Any, Any]


# Relative to ‖gradient‖ / √size, the derivative along a random direction on average: what float32 resolves.
LARGEST_INCONCLUSIVE_ERROR = 1e-2


@dataclass(frozen=True)
class WeightedOutputs:
    """The outputs of a model, weighted with cotangents, as a function of one tensor.

    Attributes:
        evaluator: Evaluates the model.
        feeds: Its inputs at the point.
        name: The tensor.
        cotangents: Weights by graph output.
    """

    evaluator: Evaluator
    feeds: Mapping[str, Any]
    name: str
    cotangents: Mapping[str, Array]

    def __call__(self, tensor: Array) -> Array:
        """Every element of every output times its cotangent; empty where an output changed its shape."""
        outputs = self.evaluator({**self.feeds, self.name: tensor})
        pairs = [(outputs[name], weight) for name, weight in self.cotangents.items()]
        if any(output.shape != weight.shape for output, weight in pairs):
            return np.empty(0)
        return np.concatenate([(output * weight).ravel() for output, weight in pairs])


def check_tensor(
    function: WeightedOutputs,
    gradient: Array,
    lines: Iterable[Direction],
    tolerance: Tolerance,
    *,
    dtype: str,
    rtol: float | None,
    atol: float | None,
    advance: Callable[[str], None],
    sweeps: Sequence[Sweep],
    repetitions: Callable[[], Sequence[Array]],
) -> TensorReport:
    """Compare `gradient` with finite differences of `function` along `lines`.

    Args:
        function: The model as a function of the tensor.
        gradient: The gradient to be checked, of the tensor's shape.
        lines: Where to compare.
        tolerance: For the precision of the two derivatives.
        dtype: The tensor's type in the model, for the report.
        rtol: Overrides the relative tolerance.
        atol: Overrides the absolute tolerance.
        advance: Called after each line with the tensor's name.
        sweeps: The steps to take, each sweep where the one before does not resolve the derivative.
        repetitions: The gradient again, from inputs that differ in their last digit. Asked for only where the
            derivatives do not agree: what rounding changes excuses a multiple of that.
    """
    point = function.feeds[function.name]
    at_zero = function(point)
    size, length = float(np.linalg.norm(at_zero)), float(np.linalg.norm(gradient))
    comparable = max(length, NEGLIGIBLE_GRADIENT * size / length_scale(point)) or 1.0
    probes: list[Probe] = []
    lines_at_random: list[Probe] = []
    coordinates = 0
    curve: tuple[tuple[float, float], ...] = ()
    for line in lines:
        absolute = tolerance.scaled * length + tolerance.floor * size / line.scale
        probe, derivative = _probe(
            function,
            point,
            at_zero,
            gradient,
            line,
            sweeps,
            relative=tolerance.relative if rtol is None else rtol,
            absolute=absolute if atol is None else atol,
        )
        if probe.point is Point.SMOOTH and not probe.passed:
            probe = _with_noise(probe, line, gradient, repetitions())
        probes.append(probe)
        coordinates += line.is_coordinate
        if line.is_random:
            lines_at_random.append(probe)
        if line.full:
            curve = _curve(derivative, probe.gradient * line.scale, comparable * line.scale)
        advance(function.name)
    inconclusive = _inconclusive(probes, lines_at_random, length / math.sqrt(max(gradient.size, 1)))
    compared = [probe for probe in probes if probe.compared and probe not in inconclusive]
    worst = max(compared, key=lambda probe: probe.excess, default=None)
    distance = max((probe.distance for probe in compared), default=0.0)
    return TensorReport(
        name=function.name,
        shape=point.shape,
        dtype=dtype,
        coordinates=coordinates,
        directions=len(probes) - coordinates,
        max_abs_error=distance,
        max_rel_error=distance / comparable,
        worst=worst,
        exceptions=tuple(probe for probe in probes if not probe.compared),
        inconclusive=inconclusive,
        failures=tuple(probe for probe in probes if not probe.passed and probe not in inconclusive),
        curve=curve,
        noise=max((probe.noise for probe in probes if probe.passed), default=0.0),
    )


def _probe(
    function: WeightedOutputs,
    point: Array,
    at_zero: Array,
    gradient: Array,
    line: Direction,
    sweeps: Sequence[Sweep],
    *,
    relative: float,
    absolute: float,
) -> tuple[Probe, Derivative]:
    """Compare along one line. Differences are taken over relative steps and scaled back."""
    claimed = line.derivative(gradient)
    displacement = line.scale * line.vector
    derivative = differentiate_by(
        sweeps,
        lambda step: function(np.asarray(point + step * displacement)),
        at_zero,
        lambda value: relative * abs(value) + absolute * line.scale,
        full=line.full,
    )
    best = derivative.best
    difference = best.value / line.scale
    probe = Probe(
        where=line.label,
        gradient=claimed,
        difference=difference,
        error=best.error / line.scale,
        tolerance=relative * max(abs(claimed), abs(difference)) + absolute,
        point=derivative.point,
        left=derivative.left.value / line.scale,
        right=derivative.right.value / line.scale,
    )
    return probe, derivative


def _inconclusive(probes: Sequence[Probe], at_random: Sequence[Probe], typical: float) -> tuple[Probe, ...]:
    """Random directions along which differences resolve the derivative, but not to the tolerance.

    In a deep network of rectifiers the steps that meet no kink may be so small that rounding decides. Such a
    line neither confirms nor refutes, as long as the two derivatives agree within an error that is small
    beside such derivatives. All other lines must agree, that along the gradient among them.
    """
    unresolved = tuple(
        probe
        for probe in at_random
        if probe.point is Point.UNRESOLVED
        and probe.distance <= probe.error <= LARGEST_INCONCLUSIVE_ERROR * typical
    )
    others = [probe for probe in probes if probe not in unresolved]
    confirmed = any(probe.point is Point.SMOOTH for probe in others)
    return unresolved if confirmed and all(probe.passed for probe in others) else ()


def _with_noise(probe: Probe, line: Direction, gradient: Array, repetitions: Sequence[Array]) -> Probe:
    """The probe with a tolerance that includes what rounding of the inputs changes in the gradient."""
    changes = [
        abs(line.derivative(again - gradient)) if again.shape == gradient.shape else math.nan
        for again in repetitions
    ]
    noise = max(changes, default=0.0)
    if not all(map(math.isfinite, changes)):
        return probe
    return dataclasses.replace(probe, tolerance=probe.tolerance + ALLOWANCE * noise, noise=noise)


def _curve(derivative: Derivative, claimed: float, comparable: float) -> tuple[tuple[float, float], ...]:
    """The relative error of the central difference at each step, the gradient taken as exact."""
    return tuple((step, abs(value - claimed) / comparable) for step, value in derivative.curve)
