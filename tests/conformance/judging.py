"""Is the gradient of a case right? Against finite differences of the case's own model, in float64."""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import onnx_grad
from onnx_grad.checking import GradientReport
from onnx_grad.checking.check import check_at
from onnx_grad.checking.comparison import Settings
from onnx_grad.checking.evaluators import EvaluatorName
from onnx_grad.checking.finite_differences import Point
from onnx_grad.checking.inputs import complete_inputs
from onnx_grad.checking.report import TensorReport
from onnx_grad.checking.subject import Subject
from onnx_grad.errors import InputError, ModelError, NotDifferentiableError, UnsupportedOpError
from onnx_grad.signature import InputSpec
from tests.conformance.cases import Case, without_shapes
from tests.conformance.points import beside
from tests.conformance.verdicts import Finding, Outcome, Precision, Verdict

# What another issue is about: where one of these is refused, the case is out of scope.
LATER = frozenset(
    """If Loop Scan SequenceMap RNN GRU LSTM SequenceConstruct SequenceEmpty SequenceInsert SequenceErase
    SequenceAt SequenceLength SplitToSequence ConcatFromSequence Optional OptionalGetElement
    OptionalHasElement""".split()
)

# What no evaluator repeats without a seed, so that there are no differences.
DRAWS = frozenset({"Bernoulli", "RandomNormalLike", "RandomUniformLike"})
NOT_CONFIRMED = "declared to have no derivative; a random draw, so that no differences confirm it"

# The best that can evaluate the model, and the others where differences of its values settle nothing, as it
# rounds to float32 inside.
EVALUATORS_TO_TRY: tuple[EvaluatorName | None, ...] = (None, "reference-float64", "onnxruntime-float32")

# Every coordinate of tensors up to a size, and otherwise random directions. The reference evaluator may take
# as long as the whole case.
SETTINGS = Settings(max_coordinates=16, random_directions=2, time_limit=30.0)

# Of the length of a gradient: what float32 constants inside a float64 operator can make of it.
ROUNDED_CONSTANTS = 1e-6
SHIPPED = "gradient graph as shipped"


class TimeLimitError(Exception):
    """A case took too long."""


def judge(case: Case, *, erase_shapes: bool = False, time_limit: float = 30.0) -> Verdict:
    """Transform a case's model and compare the gradients with finite differences.

    Args:
        case: The case.
        erase_shapes: Whether to take all shapes from the model first.
        time_limit: Seconds after which the case counts as one that cannot be evaluated.
    """
    start = time.perf_counter()
    try:
        with _limited(time_limit), _silent():
            found = _judged(case, without_shapes(case.model) if erase_shapes else case.model)
    except TimeLimitError:
        found = Finding(Outcome.UNEVALUABLE, f"it takes more than {time_limit:g} s")
    except Exception as error:  # whatever it is, a valid model must not lead to it: that is the finding
        found = Finding(Outcome.WRONG, _crash(error))
    seconds = time.perf_counter() - start
    return Verdict(case.name, case.operator, found.outcome, found.reason, seconds, found.precision)


def _judged(case: Case, model: onnx.ModelProto) -> Finding:
    if not case.wrt or not case.of:
        return Finding(Outcome.NOT_DIFFERENTIABLE, f"no float {'input' if not case.wrt else 'output'}")
    try:
        trial = _Trial.of(case, model)
    except (UnsupportedOpError, ModelError) as error:
        outside = any(n.op_type in LATER or n.domain not in ("", "ai.onnx") for n in model.graph.node)
        return Finding(Outcome.OUT_OF_SCOPE if outside else Outcome.REFUSED, _refusal(error))
    except NotDifferentiableError as error:
        return Finding(Outcome.NOT_DIFFERENTIABLE, str(error))
    found = [trial.at(point) for point in case.points]
    worst = next((f for f in found if f.outcome is not Outcome.RIGHT), found[0])
    if trial.is_flat and worst.outcome is Outcome.RIGHT:
        return Finding(Outcome.NOT_DIFFERENTIABLE, "the derivative is zero, and so are the differences")
    if trial.is_flat and any(node.op_type in DRAWS for node in model.graph.node):
        return Finding(Outcome.NOT_DIFFERENTIABLE, NOT_CONFIRMED)
    return worst


@dataclass(frozen=True)
class _Trial:
    """The model of a case under check, with respect to all that has a derivative.

    Attributes:
        case: The case.
        model: Its model, with or without its shapes.
        subject: The same as the checker wants it.
        is_flat: Whether no path leads from any input to an output.
    """

    case: Case
    model: onnx.ModelProto
    subject: Subject
    is_flat: bool

    @classmethod
    def of(cls, case: Case, model: onnx.ModelProto, outputs: list[str] | None = None) -> _Trial:
        """Transform the model.

        Raises:
            OnnxGradError: As `onnx_grad.vjp`.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            subject = Subject.of_model(model, case.wrt, outputs or case.of, ())
        messages = [str(entry.message) for entry in caught if entry.category is onnx_grad.NoPathWarning]
        is_flat = all(any(f"from '{name}' to" in message for message in messages) for name in case.wrt)
        return cls(case, model, subject, is_flat)

    def at(self, point: Mapping[str, Any]) -> Finding:
        """Check all outputs at once, or, where one is infinite whatever the point, each for itself."""
        found = self.near(point)
        if found.outcome is not Outcome.UNEVALUABLE:
            return found
        if all(np.size(point.get(name, 0.0)) == 0 for name in self.case.wrt):
            return _judge_empty(self.case, self.model, point)
        if len(self.subject.of) > 1:
            alone = [_Trial.of(self.case, self.model, [name]).near(point) for name in self.subject.of]
            wrong = [one for one in alone if one.outcome is Outcome.WRONG]
            right = [one for one in alone if one.outcome is Outcome.RIGHT]
            if decided := wrong or right:
                reason = "; ".join(dict.fromkeys(one.reason for one in alone if one.reason))
                return replace(decided[0], reason=reason, precision=min(one.precision for one in decided))
        return found

    def near(self, point: Mapping[str, Any]) -> Finding:
        """Check at the case's own point, and beside it where the model has no derivative there."""
        unclear: Finding | None = None
        for candidate in (point, *beside(point, self.case.wrt)):
            found = self.exactly_at(candidate, is_own_point=candidate is point)
            if found.outcome is not Outcome.UNEVALUABLE:
                return found
            unclear = unclear or found
        assert unclear is not None
        return unclear

    def exactly_at(self, point: Mapping[str, Any], *, is_own_point: bool) -> Finding:
        """Check at one point with the best evaluator, and with the others only where that settles nothing."""
        unclear = slight = ""
        for evaluator in EVALUATORS_TO_TRY:
            try:
                report = self.report(point, evaluator)
            except (InputError, ModelError) as error:
                unclear = unclear or _first_line(error)
                continue
            if report.problem and not is_own_point:
                # Such as an output of another size than declared.
                return Finding(Outcome.UNEVALUABLE, report.problem)
            disagreement = _disagreement(report)
            missing = _not_compared(report)
            if not disagreement and not missing and (not _rounded(report) or not slight):
                return _right(report, slight)
            if slight or (disagreement and evaluator is None and not _is_slight(report)):
                return Finding(Outcome.WRONG, slight or disagreement)
            slight = disagreement if evaluator is None else ""
            # Another evaluator that disagrees may be wrong itself: only the best was compared with others.
            unclear = unclear or missing or disagreement
            if missing and not any(tensor.failures for tensor in report.tensors):
                break  # a kink is one for every evaluator
        return Finding(Outcome.WRONG, slight) if slight else Finding(Outcome.UNEVALUABLE, unclear)

    def report(self, point: Mapping[str, Any], evaluator: EvaluatorName | None) -> GradientReport:
        """What the checker finds."""
        settings = replace(SETTINGS, evaluator=evaluator)
        specs = [InputSpec.of(value) for value in self.subject.model.graph.inputs]
        inputs = complete_inputs(specs, point, {}, {}, settings.generator(0))
        return check_at(inputs, self.subject, settings, progress=lambda done, total, name: None)


def _right(report: GradientReport, slight: str) -> Finding:
    rounded = _rounded(report)
    if slight:
        reason = f"with the reference evaluator; with ONNX Runtime, {slight}"
        return Finding(Outcome.RIGHT, reason, Precision.FLOAT64)
    if rounded:
        reason = f"compared in float32; of the reference evaluator in float64, {rounded}"
        return Finding(Outcome.RIGHT, reason, Precision.FLOAT32)
    noisy = [f"'{tensor.name}'" for tensor in report.tensors if tensor.ill_conditioned]
    reason = f"as shipped, rounding decides about {', '.join(noisy)} at this point" if noisy else ""
    return Finding(Outcome.RIGHT, reason, Precision.FLOAT64)


def _rounded(report: GradientReport) -> str:
    """Why the model or its gradient was not evaluated in float64 throughout, if so."""
    notes = [note for note in report.evaluators if note.role != SHIPPED and note.precision != "float64"]
    return "; ".join(dict.fromkeys(note.reason.split("; reference-float64: ")[-1] for note in notes))


def _is_slight(report: GradientReport) -> bool:
    """Whether a disagreement may come from constants that ONNX Runtime rounds inside the forward operator."""
    own = (tensor.own_precision for tensor in report.tensors)
    return (
        not report.problem
        and all(found is None or found.passed for found in own)
        and all(not tensor.problem and tensor.max_rel_error < ROUNDED_CONSTANTS for tensor in report.tensors)
    )


def _judge_empty(case: Case, model: onnx.ModelProto, point: Mapping[str, Any]) -> Finding:
    """The gradient of an empty tensor is empty: there are no differences, but the graph must run."""
    function = onnx_grad.GradientFunction(model, case.wrt, case.of)
    outputs = ReferenceEvaluator(model).run(case.of, dict(point))
    ones = {name: np.ones_like(output) for name, output in zip(case.of, outputs, strict=True)}
    gradients = function(point, cotangents=ones).gradients
    for name, gradient in gradients.items():
        if gradient.shape != np.shape(point[name]):
            return Finding(Outcome.WRONG, f"'{name}': the gradient has the shape {list(gradient.shape)}")
    return Finding(Outcome.RIGHT, "all tensors are empty")


def _disagreement(report: GradientReport) -> str:
    """What is wrong with a gradient, if anything."""
    for tensor in report.tensors:
        wrong = [probe for probe in tensor.failures if probe.point is Point.SMOOTH]
        if tensor.problem:
            return f"'{tensor.name}': {tensor.problem}"
        if wrong:
            probe = max(wrong, key=lambda probe: probe.excess)
            return (
                f"'{tensor.name}' {probe.where}: gradient {probe.gradient:.8g}, differences "
                f"{probe.difference:.8g} ± {probe.error:.1g} ({len(wrong)} of {_probes(tensor)} probes)"
            )
        own = tensor.own_precision
        # Beside a kink, rounding decides on which side of it a gradient is taken.
        if own is not None and not own.passed and not tensor.exceptions:
            return (
                f"'{tensor.name}' {own.where}: {own.gradient:.8g} in {own.dtype}, but "
                f"{own.reference:.8g} in float64"
            )
    return report.problem


def _not_compared(report: GradientReport) -> str:
    """Which tensor has elements that were not compared, if any."""
    for tensor in report.tensors:
        open_points = [*tensor.exceptions, *tensor.failures]
        if open_points:
            kinds = ", ".join(sorted({str(probe.point) for probe in open_points}))
            return f"'{tensor.name}': {len(open_points)} of {_probes(tensor)} probes not compared: {kinds}"
    return ""


def _probes(tensor: TensorReport) -> int:
    return tensor.coordinates + tensor.directions


def _refusal(error: Exception) -> str:
    """The reason in an error, without the node that it is about."""
    return str(error).split("): ", 1)[-1]


def _crash(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__} at {where}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Edges of domains are no news here."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
