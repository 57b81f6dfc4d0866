"""What a check found, as data: printed, kept as JSON, plotted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group

from onnx_grad.checking.finite_differences import Point


@dataclass(frozen=True)
class Probe:
    """The derivative along one coordinate or direction, from the gradient graph and from differences.

    Attributes:
        where: The coordinate, or what direction it was.
        gradient: The derivative that the gradient graph gives.
        difference: The derivative that finite differences of the model give.
        error: The estimated error of `difference`.
        tolerance: How far the two may be apart.
        point: What the model looks like there; only smooth points are compared.
        left: The derivative from differences to the left.
        right: The derivative from differences to the right.
        noise: By how much `gradient` changes when its inputs change in their last digit, in the precision of
            the check. It is measured, and part of the tolerance, only where the two do not agree without.
    """

    where: str
    gradient: float
    difference: float
    error: float
    tolerance: float
    point: Point
    left: float
    right: float
    noise: float = 0.0

    @property
    def distance(self) -> float:
        """How far the two derivatives are apart; infinite where the gradient is not a number."""
        distance = abs(self.gradient - self.difference)
        return math.inf if math.isnan(distance) else distance

    @property
    def excess(self) -> float:
        """The distance as a multiple of the tolerance."""
        if self.distance == 0.0:
            return 0.0
        return self.distance / self.tolerance if self.tolerance > 0.0 else math.inf

    @property
    def compared(self) -> bool:
        """Whether the model has a derivative there, as far as differences tell."""
        return self.point in (Point.SMOOTH, Point.UNRESOLVED)

    @property
    def passed(self) -> bool:
        """Whether the two derivatives agree, or there is none to agree with."""
        if not self.compared:
            return True
        return self.point is Point.SMOOTH and self.distance <= self.tolerance + self.error


@dataclass(frozen=True)
class OwnPrecision:
    """The gradient as it ships, in the model's own type, against the same in the checked precision.

    Attributes:
        dtype: The type of the gradient.
        where: The element with the largest error.
        gradient: That element as it ships.
        reference: That element in the checked precision.
        max_abs_error: The largest absolute error.
        max_rel_error: The same relative to the largest element, unless that is negligible itself.
        tolerance: How far `gradient` may be from `reference`.
        passed: Whether every element is within its tolerance.
        noise: By how much the gradient changes when its inputs, or the values of the forward model, change
            in their last digit. It is measured, and part of the tolerance, only where the gradient is beyond
            the tolerance for its type.
        largest: The largest element in the checked precision.
    """

    dtype: str
    where: str
    gradient: float
    reference: float
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    passed: bool
    noise: float = 0.0
    largest: float = 0.0

    @property
    def ill_conditioned(self) -> bool:
        """Whether the gradient agrees only because rounding of its inputs changes it as much."""
        return self.passed and self.noise > 0.0


@dataclass(frozen=True)
class TensorReport:
    """What was found for one tensor in `wrt`.

    Attributes:
        name: The tensor.
        shape: Its shape at the point that was checked.
        dtype: Its type in the model.
        coordinates: How many coordinates were checked one by one.
        directions: How many directions were checked.
        max_abs_error: The largest distance between gradient and difference quotient.
        max_rel_error: The same relative to the length of the gradient, unless that is negligible itself.
        worst: The probe that comes closest to its tolerance, or is furthest beyond.
        exceptions: Probes where the model has no derivative: kinks, discontinuities, edges of its domain.
        failures: Probes that do not agree, or that finite differences cannot decide.
        inconclusive: Random directions along which the two agree, but no better than differences resolve. All
            other lines agree to the tolerance.
        curve: For the steps of one direction, the step relative to the size of the tensor, and the error
            of the central difference relative to the length of the gradient.
        own_precision: The gradient as it ships; `None` where it could not be run.
        problem: What is wrong with the gradient as a whole, if anything.
        noise: The largest rounding noise along a line where the gradient agrees only within that noise.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    coordinates: int = 0
    directions: int = 0
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    worst: Probe | None = None
    exceptions: tuple[Probe, ...] = ()
    failures: tuple[Probe, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    own_precision: OwnPrecision | None = None
    problem: str = ""
    noise: float = 0.0
    inconclusive: tuple[Probe, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees."""
        own = self.own_precision is None or self.own_precision.passed
        return own and not self.failures and not self.problem

    @property
    def verdict(self) -> str:
        """In a word."""
        if not self.passed:
            return "fails"
        if self.worst is None:
            return "nothing to compare"
        if self.noise:
            return "agrees, noise"
        return "agrees, noise as shipped" if self.ill_conditioned else "agrees"

    @property
    def ill_conditioned(self) -> bool:
        """Whether the gradient agrees only because rounding of its inputs changes it as much."""
        own = self.own_precision
        return self.passed and (self.noise > 0.0 or (own is not None and own.ill_conditioned))


@dataclass(frozen=True)
class EvaluatorNote:
    """What evaluated something, and why not something better.

    Attributes:
        role: What was evaluated.
        evaluator: By what.
        precision: With what precision.
        reason: Why each better evaluator was not possible; empty for the best.
        caveat: What else to know about what it gave.
    """

    role: str
    evaluator: str
    precision: str
    reason: str
    caveat: str = ""


@dataclass(frozen=True)
class GradientReport:
    """The verdict on the gradients of a model, and what it rests on.

    Attributes:
        model: What was checked.
        of: The tensors that were differentiated.
        inputs: Type and shape of every input at the point that was checked.
        seed: Seed of the random inputs, cotangents and directions.
        tensors: What was found, by tensor.
        evaluators: What evaluated the model and its gradient.
        problem: Why the gradient does not run although the model does; empty if it runs.
        seconds: How long the check took.
    """

    model: str
    of: tuple[str, ...]
    inputs: dict[str, str]
    seed: int
    tensors: tuple[TensorReport, ...]
    evaluators: tuple[EvaluatorNote, ...]
    problem: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every gradient agrees with finite differences and runs in the model's own type."""
        return not self.problem and all(tensor.passed for tensor in self.tensors)

    @property
    def kinks(self) -> tuple[tuple[str, Probe], ...]:
        """The points where the model has no derivative, with the tensor they belong to."""
        return tuple((t.name, probe) for t in self.tensors for probe in t.exceptions)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON; numbers that are not finite are strings."""
        content = dataclasses.asdict(self)
        content["passed"] = self.passed
        for tensor, entry in zip(self.tensors, content["tensors"], strict=True):
            entry["passed"] = tensor.passed
            entry["ill_conditioned"] = tensor.ill_conditioned
        return json.dumps(_finite(content), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GradientReport:
        """The report that `to_json` wrote."""
        content = json.loads(text)
        del content["passed"]
        return cls(
            **{
                **content,
                "of": tuple(content["of"]),
                "tensors": tuple(map(_tensor, content["tensors"])),
                "evaluators": tuple(EvaluatorNote(**note) for note in content["evaluators"]),
            }
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the error of the finite difference against its step, a V for each tensor.

        Args:
            path: Where to write the PNG.

        Raises:
            RuntimeUnavailableError: matplotlib is not installed.
            OutputError: The file cannot be written.
        """
        from onnx_grad.checking.plot import plot_curves

        plot_curves(self, path)

    def __rich__(self) -> Group:
        from onnx_grad.checking.rendering import rendered

        return rendered(self)

    def __str__(self) -> str:
        console = Console(width=110, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _tensor(entry: dict[str, Any]) -> TensorReport:
    passed = entry.pop("passed")
    del entry["ill_conditioned"]
    own = entry["own_precision"]
    tensor = TensorReport(
        **{
            **entry,
            "shape": tuple(entry["shape"]),
            "max_abs_error": float(entry["max_abs_error"]),
            "max_rel_error": float(entry["max_rel_error"]),
            "noise": float(entry["noise"]),
            "worst": None if entry["worst"] is None else _probe(entry["worst"]),
            "exceptions": tuple(map(_probe, entry["exceptions"])),
            "failures": tuple(map(_probe, entry["failures"])),
            "inconclusive": tuple(map(_probe, entry["inconclusive"])),
            "curve": tuple((float(step), float(error)) for step, error in entry["curve"]),
            "own_precision": None if own is None else _own_precision(own),
        }
    )
    assert tensor.passed == passed
    return tensor


def _probe(entry: dict[str, Any]) -> Probe:
    numbers = {k: float(v) for k, v in entry.items() if k not in ("where", "point")}
    return Probe(where=entry["where"], point=Point(entry["point"]), **numbers)


def _own_precision(entry: dict[str, Any]) -> OwnPrecision:
    numbers = {k: float(v) for k, v in entry.items() if k not in ("dtype", "where", "passed")}
    return OwnPrecision(dtype=entry["dtype"], where=entry["where"], passed=entry["passed"], **numbers)
