"""Is the gradient of a case right? Against finite differences of the case's own model, in float64."""

from __future__ import annotations

import contextlib
import enum
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import onnx_grad
from onnx_grad.checking import GradientReport, check_gradients
from onnx_grad.checking.evaluators import EvaluatorName
from onnx_grad.checking.finite_differences import Point
from onnx_grad.checking.report import TensorReport
from onnx_grad.errors import InputError, ModelError, NotDifferentiableError, UnsupportedOpError
from tests.conformance.cases import Case, without_shapes

# Subgraphs, sequences and optionals are not differentiated yet, nor recurrent operators.
NOT_YET = frozenset(
    """If Loop Scan SequenceMap RNN GRU LSTM SequenceConstruct SequenceEmpty SequenceInsert SequenceErase
    SequenceAt SequenceLength SplitToSequence ConcatFromSequence Optional OptionalGetElement
    OptionalHasElement""".split()
)

# What no evaluator repeats, so that there are no differences.
DRAWS = frozenset({"Bernoulli", "RandomNormalLike", "RandomUniformLike"})

# Every coordinate of tensors up to this size, and otherwise random directions.
COORDINATES, DIRECTIONS = 16, 2

# The best that can evaluate the model, and the others where differences of its values settle nothing, as it
# rounds to float32 inside, or draws other numbers each time.
EVALUATORS_TO_TRY: tuple[EvaluatorName | None, ...] = (None, "reference-float64", "onnxruntime-float32")


# Numbers beyond these, such as those that mask an attention or that nobody ever set, are brought back for the
# points beside the case's own.
SMALL, LARGE = 1e-4, 1e4

# Seconds that the reference evaluator may take for one tensor, before float32 has to do.
SLOWEST_REFERENCE = 5.0

# Of the length of a gradient: what float32 constants inside a float64 operator can make of it.
ROUNDED_CONSTANTS = 1e-6
IN_FLOAT32 = "compared in float32"
SHIPPED = "gradient graph as shipped"


class Outcome(enum.StrEnum):
    """What became of a case."""

    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"
    OUT_OF_SCOPE = "out of scope"
    UNEVALUABLE = "unevaluable"
    NOT_DIFFERENTIABLE = "not differentiable"


@dataclass(frozen=True)
class Verdict:
    """What became of a case, and why.

    Attributes:
        case: Its name.
        operator: Its operator.
        outcome: What became of it.
        reason: Why; where it is right, any reservation.
        seconds: How long it took.
    """

    case: str
    operator: str
    outcome: Outcome
    reason: str
    seconds: float


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
        with _limited(time_limit):
            outcome, reason = _outcome(case, without_shapes(case.model) if erase_shapes else case.model)
    except TimeLimitError:
        outcome, reason = Outcome.UNEVALUABLE, f"it takes more than {time_limit:g} s"
    except Exception as error:  # whatever it is, a valid model must not lead to it: that is the finding
        outcome, reason = Outcome.WRONG, _crash(error)
    return Verdict(case.name, case.operator, outcome, reason, time.perf_counter() - start)


def _outcome(case: Case, model: onnx.ModelProto) -> tuple[Outcome, str]:
    if any(node.op_type in NOT_YET for node in model.graph.node):
        return (
            Outcome.OUT_OF_SCOPE,
            "subgraphs, recurrences, sequences and optionals are not differentiated yet",
        )
    if not case.wrt or not case.of:
        return Outcome.NOT_DIFFERENTIABLE, f"no float {'input' if not case.wrt else 'output'}"
    try:
        flat = _without_path(model, case.wrt, case.of)
    except (UnsupportedOpError, ModelError) as error:
        foreign = any(node.domain not in ("", "ai.onnx") for node in model.graph.node)
        return Outcome.OUT_OF_SCOPE if foreign else Outcome.REFUSED, str(error).split("): ", 1)[-1]
    except NotDifferentiableError as error:
        return Outcome.NOT_DIFFERENTIABLE, str(error)
    found = [_judge_point(case, model, point) for point in case.points]
    outcome, reason = next((f for f in found if f[0] is not Outcome.RIGHT), found[0])
    if flat == set(case.wrt) and outcome is Outcome.RIGHT:
        return Outcome.NOT_DIFFERENTIABLE, "the derivative is zero, and so are the differences"
    if flat == set(case.wrt) and any(node.op_type in DRAWS for node in model.graph.node):
        return Outcome.NOT_DIFFERENTIABLE, "the derivative of a random draw is declared zero"
    return outcome, reason


def _without_path(model: onnx.ModelProto, wrt: list[str], of: list[str]) -> set[str]:
    """Transform `model`; which of `wrt` no path leads from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        onnx_grad.vjp(model, wrt, of)
    found = [str(entry.message) for entry in caught if entry.category is onnx_grad.NoPathWarning]
    return {name for name in wrt if any(f"from '{name}' to" in message for message in found)}


def _judge_point(case: Case, model: onnx.ModelProto, point: Mapping[str, Any]) -> tuple[Outcome, str]:
    """Check all outputs at once, or, where one is infinite whatever the point, each for itself."""
    outcome, reason = _judge_outputs(case, model, point, case.of)
    if outcome is not Outcome.UNEVALUABLE:
        return outcome, reason
    if all(np.size(point.get(name, 0.0)) == 0 for name in case.wrt):
        return _judge_empty(case, model, point)
    if len(case.of) > 1:
        alone = [_judge_outputs(case, model, point, [name]) for name in case.of]
        for decided in (Outcome.WRONG, Outcome.RIGHT):
            if any(found[0] is decided for found in alone):
                return decided, "; ".join(found[1] for found in alone if found[1])
    return outcome, reason


def _judge_outputs(
    case: Case, model: onnx.ModelProto, point: Mapping[str, Any], of: list[str]
) -> tuple[Outcome, str]:
    """Check at the case's own point, and beside it where the model has no derivative there.

    Data of backend cases is full of round numbers: ties, zeros, the edges of domains. What lies there is
    not compared, so that the point beside, where all is smooth, must show that the gradient is right.
    """
    unclear = ""
    for candidate in (point, *_beside(point, case.wrt)):
        outcome, reason = _judge_exactly(case, model, candidate, of, is_own_point=candidate is point)
        if outcome is not Outcome.UNEVALUABLE:
            return outcome, reason
        unclear = unclear or reason
    return Outcome.UNEVALUABLE, unclear


def _judge_exactly(
    case: Case, model: onnx.ModelProto, point: Mapping[str, Any], of: list[str], *, is_own_point: bool
) -> tuple[Outcome, str]:
    """Check at one point with the best evaluator, and with the others only where that settles nothing."""
    unclear = slight = ""
    for evaluator in EVALUATORS_TO_TRY:
        try:
            report = _check(model, case.wrt, of, point, evaluator)
        except (InputError, ModelError) as error:
            unclear = unclear or _first_line(error)
            continue
        if report.problem and not is_own_point:
            return Outcome.UNEVALUABLE, report.problem  # such as an output of another size than declared
        disagreement = _disagreement(report, random=_is_random(model))
        missing = _not_compared(report)
        if not disagreement and not missing and (_is_exact(report) or not slight):
            return Outcome.RIGHT, _remark(report, slight)
        if slight or (disagreement and evaluator is None and not _is_slight(report)):
            return Outcome.WRONG, slight or disagreement
        slight = disagreement if evaluator is None else ""
        # Another evaluator that disagrees may be wrong itself: only the best was compared with others.
        unclear = unclear or missing or disagreement
        if missing and not any(tensor.failures for tensor in report.tensors):
            break  # a kink is one for every evaluator
    return (Outcome.WRONG, slight) if slight else (Outcome.UNEVALUABLE, unclear)


def _remark(report: GradientReport, slight: str) -> str:
    """What is to be said of a gradient that is right."""
    if slight:
        return f"with the reference evaluator; with ONNX Runtime, {slight}"
    return "" if _is_exact(report) else IN_FLOAT32


def _is_slight(report: GradientReport) -> bool:
    """Whether a disagreement may come from constants that ONNX Runtime rounds inside the forward operator."""
    own = (tensor.own_precision for tensor in report.tensors)
    return (
        not report.problem
        and all(found is None or found.passed for found in own)
        and all(not tensor.problem and tensor.max_rel_error < ROUNDED_CONSTANTS for tensor in report.tensors)
    )


def _is_exact(report: GradientReport) -> bool:
    """Whether the model and its gradient were evaluated in float64 throughout."""
    return all(note.precision == "float64" for note in report.evaluators if note.role != SHIPPED)


def _judge_empty(case: Case, model: onnx.ModelProto, point: Mapping[str, Any]) -> tuple[Outcome, str]:
    """The gradient of an empty tensor is empty: there are no differences, but the graph must run."""
    function = onnx_grad.GradientFunction(model, case.wrt, case.of)
    outputs = ReferenceEvaluator(model).run(case.of, dict(point))
    ones = {name: np.ones_like(output) for name, output in zip(case.of, outputs, strict=True)}
    gradients = function(point, cotangents=ones).gradients
    for name, gradient in gradients.items():
        if gradient.shape != np.shape(point[name]):
            return Outcome.WRONG, f"'{name}': the gradient has the shape {list(gradient.shape)}"
    return Outcome.RIGHT, "all tensors are empty"


def _is_random(model: onnx.ModelProto) -> bool:
    """Whether it drops at random, differently in every evaluator."""
    return any(node.op_type == "Dropout" and len(node.input) > 2 for node in model.graph.node)


def _check(
    model: onnx.ModelProto,
    wrt: list[str],
    of: list[str],
    point: Mapping[str, Any],
    evaluator: EvaluatorName | None,
) -> GradientReport:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return check_gradients(
            model,
            wrt,
            of,
            inputs=point,
            evaluator=evaluator,
            time_limit=SLOWEST_REFERENCE,
            max_coordinates=COORDINATES,
            random_directions=DIRECTIONS,
            progress=lambda done, total, name: None,
        )


def _beside(point: Mapping[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Points nearby where all numbers are finite and none is zero, nor two equal.

    Which way leads into the model's domain is not known: nearer to zero, away from it with zeros moved up
    or down, or among positive numbers alone.
    """
    for moved in (
        lambda x, step: np.where(abs(x) < SMALL, step, x * (1.0 - step)),
        lambda x, step: np.where(abs(x) < SMALL, step, x * (1.0 + step)),
        lambda x, step: np.where(abs(x) < SMALL, -step, x * (1.0 + step)),
        lambda x, step: np.abs(x) + step,
    ):
        generator = np.random.default_rng(0)
        nearby = dict(point)
        for name in names:
            if name in point:
                x = np.asarray(point[name])
                steps = generator.uniform(0.01, 0.05, x.shape)
                finite = np.clip(
                    np.nan_to_num(x.astype(np.float64), nan=1.0, posinf=1.0, neginf=-1.0), -LARGE, LARGE
                )
                nearby[name] = np.asarray(moved(finite, steps)).astype(x.dtype)
        yield nearby


def _disagreement(report: GradientReport, *, random: bool) -> str:
    """What is wrong with a gradient, if anything. Random ones cannot be compared between evaluators."""
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
        if own is not None and not own.passed and not random and not tensor.exceptions:
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


def _crash(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__} at {where}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


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
