"""The derivative of a function along a line, from its values alone.

Central and one-sided differences are taken over a sweep of shrinking steps and extrapolated to step zero by
Neville's scheme, as in C. J. F. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Advances in
Engineering Software 4 (1982) 75-76: of all extrapolated values the one with the smallest estimated error
is taken, so that neither truncation (steps too large) nor rounding (steps too small) has to be guessed.

The two one-sided derivatives tell a kink from a smooth point. They must each converge, and the second
difference must stay the same over the smallest steps instead of shrinking with them: at a smooth point it
shrinks, so that a wrong gradient there cannot pass for a kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Line: TypeAlias = Callable[[float], Array]


class Point(StrEnum):
    """What the function looks like at the point, along the line."""

    SMOOTH = "smooth"
    KINK = "kink"
    JUMP = "discontinuity"
    EDGE = "edge of the domain"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class Sweep:
    """The steps to take, relative to the length scale of the tensor.

    Attributes:
        first: The largest step.
        ratio: Each step is the one before divided by this.
        count: How many steps there are.
        least: How many are taken at least.
        rounding: Relative rounding error of one evaluation.
    """

    first: float
    ratio: float
    count: int
    least: int
    rounding: float

    @property
    def steps(self) -> list[float]:
        """All steps, from the largest."""
        return [self.first / self.ratio**i for i in range(self.count)]

    @property
    def evaluations(self) -> int:
        """How often the function is evaluated for all steps."""
        return 2 * self.count


# Odd numbers, so that the steps do not fall in with the grid of a function that rounds.
SWEEPS = {
    "float64": (
        Sweep(first=0.0937, ratio=3.83, count=13, least=4, rounding=2.0**-52),
        # Along its gradient a function changes so much that smaller steps still tell, and may be needed.
        Sweep(first=2.45e-9, ratio=3.83, count=4, least=3, rounding=2.0**-52),
    ),
    "float32": (Sweep(first=0.0937, ratio=1.93, count=11, least=4, rounding=2.0**-23),),
}

# For functions that take long: first below the kinks of a deep network; then, where rounding decides there,
# larger steps, which do for a smooth function.
BRIEF_SWEEPS = (
    Sweep(first=5.27e-7, ratio=3.83, count=4, least=3, rounding=2.0**-52),
    SWEEPS["float64"][1],
    Sweep(first=6.39e-3, ratio=14.7, count=4, least=3, rounding=2.0**-52),
)

# A kink's second difference varies less than this over the last steps; a smooth one's by the ratio of steps.
_CONSTANT = 0.1
_LAST_STEPS = 3
# A discontinuity smaller than this part of the function is not told from rounding inside the model.
_SMALLEST_JUMP = 1e-5


@dataclass(frozen=True)
class Estimate:
    """An extrapolated number and the error it may have; `inf` where there is no estimate."""

    value: float
    error: float


# By step, from the largest, and number of eliminated powers of the step.
Scheme: TypeAlias = "dict[tuple[int, int], Estimate]"


@dataclass(frozen=True)
class Derivative:
    """The derivative along a line.

    Attributes:
        point: What the function looks like there.
        central: From central differences.
        left: From differences to the left.
        right: From differences to the right.
        curve: The central difference at each step, without extrapolation.
    """

    point: Point
    central: Estimate
    left: Estimate
    right: Estimate
    curve: tuple[tuple[float, float], ...]

    @property
    def best(self) -> Estimate:
        """The derivative: the central one, or the mean of the two sides where that is known better."""
        return _best(self.central, self.left, self.right)


def differentiate_by(
    sweeps: Sequence[Sweep],
    line: Line,
    at_zero: Array,
    tolerance: Callable[[float], float],
    *,
    full: bool = False,
) -> Derivative:
    """The derivative by the first of `sweeps` that resolves it, or that with the smallest error."""
    found: list[Derivative] = []
    for sweep in sweeps:
        found.append(differentiate(line, at_zero, sweep, tolerance, full=full))
        if found[-1].point is not Point.UNRESOLVED:
            best = found[-1]
            break
    else:
        best = min(found, key=lambda derivative: derivative.best.error)
    curve = sorted((sample for derivative in found for sample in derivative.curve), reverse=True)
    return replace(best, curve=tuple(curve))


def differentiate(
    line: Line, at_zero: Array, sweep: Sweep, tolerance: Callable[[float], float], *, full: bool = False
) -> Derivative:
    """The derivative at t = 0 of the sum of `line(t)`.

    Args:
        line: A function of a number whose result is an array; the differences are taken element by element
            before they are added up.
        at_zero: Its value at 0, all finite.
        sweep: The steps to take.
        tolerance: The error that is good enough for a derivative of a given value. Once it is met
            with a margin, no smaller steps are taken.
        full: Take every step of the sweep all the same, for the curve of error against step.
    """
    size = float(np.linalg.norm(at_zero))
    samples = _Samples(sweep, size)
    estimates: _Estimates | None = None
    for step in sweep.steps:
        samples.add(step, _total(line(step), at_zero), _total(line(-step), at_zero))
        if full or len(samples.steps) < sweep.least:
            continue
        estimates = samples.estimates(tolerance)
        if estimates.settled(tolerance):
            break
    return samples.derivative(estimates or samples.estimates(tolerance), tolerance)


def _total(values: Array, at_zero: Array) -> float:
    """The sum of what changed; NaN where the function has no value or another shape."""
    if values.shape != at_zero.shape:
        return math.nan
    total = float(np.sum(values - at_zero))
    return total if math.isfinite(total) else math.nan


class _Estimates(NamedTuple):
    """The central, the left and the right derivative."""

    central: Estimate
    left: Estimate
    right: Estimate

    def settled(self, tolerance: Callable[[float], float]) -> bool:
        """Whether all three are known well enough, and are the same."""
        central, left, right = self
        enough = 0.1 * tolerance(central.value)
        return (
            max(central.error, left.error, right.error) <= enough and abs(left.value - right.value) <= enough
        )


class _Samples:
    """Differences to the right and to the left of the point, by step."""

    def __init__(self, sweep: Sweep, size: float) -> None:
        self.steps: list[float] = []
        self.right: list[float] = []
        self.left: list[float] = []
        self._ratio = sweep.ratio
        self._size = size
        self._noise = 4.0 * sweep.rounding * size

    def add(self, step: float, right: float, left: float) -> None:
        """Record f(step) - f(0) and f(-step) - f(0)."""
        self.steps.append(step)
        self.right.append(right)
        self.left.append(left)

    def derivative(self, estimates: _Estimates, tolerance: Callable[[float], float]) -> Derivative:
        central, left, right = estimates
        curve = tuple(zip(self.steps, self._central(), strict=True))
        return Derivative(self._point(central, left, right, tolerance), central, left, right, curve)

    def _central(self) -> list[float]:
        sides = zip(self.steps, self.right, self.left, strict=True)
        return [(right - left) / (2.0 * step) for step, right, left in sides]

    def estimates(self, tolerance: Callable[[float], float]) -> _Estimates:
        """The derivatives from all differences so far."""
        noise = [self._noise / step for step in self.steps]
        right, left = (
            neville(
                [sign * value / step for step, value in zip(self.steps, side, strict=True)],
                noise,
                self._ratio,
                powers=(1, 2, 3, 4, 5, 6),
            )
            for sign, side in ((1.0, self.right), (-1.0, self.left))
        )
        central = neville(self._central(), noise, self._ratio, powers=(2, 4, 6, 8, 10, 12))
        return _Estimates(
            _choice(_with_sides(central, left, right), tolerance),
            _choice(left, tolerance),
            _choice(right, tolerance),
        )

    def _point(
        self,
        central: Estimate,
        left: Estimate,
        right: Estimate,
        tolerance: Callable[[float], float],
    ) -> Point:
        if math.isnan(self.right[-1]) != math.isnan(self.left[-1]):
            return Point.EDGE
        if self._is_kink(left, right, tolerance):
            return Point.KINK
        best = _best(central, left, right)
        if best.error <= tolerance(best.value):
            return Point.SMOOTH
        if self._jumps(self.right) or self._jumps(self.left):
            return Point.JUMP
        return Point.UNRESOLVED

    def _is_kink(self, left: Estimate, right: Estimate, tolerance: Callable[[float], float]) -> bool:
        """Whether the one-sided derivatives converge to two numbers, down to the smallest usable step."""
        gap = abs(right.value - left.value)
        enough = tolerance(max(abs(left.value), abs(right.value)))
        if not gap > enough or left.error + right.error > _CONSTANT * gap:
            return False
        sides = zip(self.steps, self.right, self.left, strict=True)
        usable = [
            (right + left) / step
            for step, right, left in sides
            if self._noise / step <= 0.25 * _CONSTANT * gap
        ]
        last = usable[-_LAST_STEPS:]
        signed = right.value - left.value
        return len(last) == _LAST_STEPS and all(abs(value - signed) <= _CONSTANT * gap for value in last)

    def _jumps(self, differences: Sequence[float]) -> bool:
        """Whether the function does not come back to its value as the step shrinks."""
        last = differences[-_LAST_STEPS:]
        smallest = min(map(abs, last))
        largest = max(map(abs, last))
        return (
            not any(map(math.isnan, last))
            and smallest > max(_SMALLEST_JUMP * self._size, 100.0 * self._noise)
            and largest - smallest <= _CONSTANT * largest
        )


def neville(values: Sequence[float], noise: Sequence[float], ratio: float, powers: Sequence[int]) -> Scheme:
    """Neville's scheme of extrapolations to step zero, each with an estimate of its error.

    Args:
        values: What was computed at steps that shrink by `ratio`. Those before the last NaN are left out.
        noise: The rounding error of each.
        ratio: Quotient of successive steps.
        powers: The powers of the step in the error of `values`, to be eliminated one after the other.

    Returns:
        By step and number of eliminated powers, the extrapolated value; its error is how much it differs
        from its neighbours in the scheme.
    """
    start = max((i + 1 for i, value in enumerate(values) if not math.isfinite(value)), default=0)
    scheme: Scheme = {}
    previous: list[float] = []
    for index in range(start, len(values)):
        row = [values[index]]
        if previous:
            # The quotients themselves count as well: for piecewise linear functions they are exact.
            scheme[index, 0] = Estimate(row[0], abs(row[0] - previous[0]) + noise[index])
        for column, (power, above) in enumerate(zip(powers, previous, strict=False)):
            factor = ratio**power
            finer = (factor * row[column] - above) / (factor - 1.0)
            error = max(abs(finer - row[column]), abs(finer - above)) + noise[index]
            scheme[index, column + 1] = Estimate(finer, error)
            row.append(finer)
        previous = row
    return scheme


def _with_sides(central: Scheme, left: Scheme, right: Scheme) -> Scheme:
    """Central derivatives, which are no better known than the two sides agree.

    A sum of many kinks looks smooth from afar: its central differences converge to a slope that is not the
    derivative. The sides tell.
    """
    return {
        key: Estimate(value.value, max(value.error, abs(right[key].value - left[key].value)))
        for key, value in central.items()
        if key in left and key in right
    }


def _choice(scheme: Scheme, tolerance: Callable[[float], float]) -> Estimate:
    """The value with the smallest error of those that agree with the smallest steps.

    The smallest steps that are exact enough see the function closest to the point: where larger ones
    give another slope, they met kinks.
    """
    enough = [key for key, found in scheme.items() if found.error <= tolerance(found.value)]
    finest = min(enough, key=lambda key: (-key[0], scheme[key].error), default=None)
    agreeing = (
        found
        for found in scheme.values()
        if finest is None or abs(found.value - scheme[finest].value) <= found.error + scheme[finest].error
    )
    return min(agreeing, key=lambda found: found.error, default=Estimate(math.nan, math.inf))


def _best(central: Estimate, left: Estimate, right: Estimate) -> Estimate:
    """The one-sided derivatives converge where the second derivative jumps, and the central one does not."""
    gap = abs(right.value - left.value)
    both = Estimate(0.5 * (left.value + right.value), left.error + right.error + gap)
    return both if both.error < central.error else central
