"""What evaluates a model, and how exactly: the best of three that can.

1. ONNX Runtime in float64: fast and exact, but many operators have no float64 kernel.
2. The ONNX reference evaluator in float64: exact, slow, and wrong for a few operators, so that it is
   compared with ONNX Runtime first. Where the two differ, rounding of float32 excuses no more than it makes.
3. ONNX Runtime in float32: always there, with 7 digits.

Differences need a function. ONNX Runtime draws other random numbers in every run, even with a fixed seed; the
reference evaluator draws the same ones again from a fixed seed, so that such a model is left to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import RANDOM_OPERATORS
from onnx_grad.checking.evaluators import (
    EVALUATORS,
    Candidate,
    Evaluator,
    EvaluatorName,
    Feeds,
    OnnxReferenceEvaluator,
    OnnxRuntimeEvaluator,
    first_line,
)
from onnx_grad.checking.intermediates import intermediate_noise
from onnx_grad.checking.noise import ALLOWANCE, rounding_noise
from onnx_grad.errors import InputError, ModelError, OnnxGradError

Array: TypeAlias = np.ndarray[Any, Any]

# The reference evaluator counts as wrong when an output is further from ONNX Runtime's, relative to its
# largest element: float32 rounding stays below, a wrong formula does not.
REFERENCE_AGREEMENT = 1e-3

FLOAT32_EPSILON = 2.0**-23

# An output that is smaller than this part of the largest one is what rounding left of others.
NEGLIGIBLE = 1e-3

# Two evaluations of a model that is a function differ by less, relative to the largest element.
REPEATABLE = 1e-4

# How often a model with random operators is evaluated to see that it repeats. Two masks of few elements
# may well be the same. In ONNX Runtime they often are: each run takes the next seed, which hardly changes the
# first random numbers, and the seeds 0 and 1 are one.
TRIALS = 12


@dataclass(frozen=True)
class Choice:
    """The evaluator that was chosen, and why not a better one.

    Attributes:
        evaluator: The evaluator.
        reason: Why each better one was not possible; empty for the best.
        outputs: What it gave for the inputs it was tried with.
        seconds: How long that took.
        caveat: What to know about the comparison of the reference evaluator with ONNX Runtime.
    """

    evaluator: Evaluator
    reason: str
    outputs: dict[str, Array]
    seconds: float = 0.0
    caveat: str = ""


def choose_evaluator(
    float64: Candidate | str,
    float32: Callable[[], Candidate],
    feeds: Feeds,
    *,
    evaluations: int = 1,
    time_limit: float = float("inf"),
    only: EvaluatorName | None = None,
) -> Choice:
    """The best evaluator that can evaluate a model at `feeds`.

    Args:
        float64: The model in float64, or why there is none.
        float32: Gives the model in float32, where it is needed.
        feeds: Inputs to try it with.
        evaluations: How often it is going to be evaluated at least.
        time_limit: Seconds these evaluations may take with the reference evaluator.
        only: The evaluator to use, instead of the best one.

    Raises:
        InputError: None can evaluate the model; the message has each one's reason.
        ModelError: Those that can draw other random numbers every time.
    """
    reasons: list[str] = []
    slow: Choice | None = None
    redrawn = ""
    for name in EVALUATORS if only is None else (only,):
        candidate = float32() if name == "onnxruntime-float32" else float64
        if isinstance(candidate, str):
            reasons.append(f"{name}: {candidate}")
            continue
        try:
            evaluator = build(name, candidate)
            outputs, seconds = _timed(evaluator, feeds)
            if differing := _redrawn(evaluator, feeds, outputs, candidate):
                redrawn = redrawn or differing
                reasons.append(f"{name}: it draws other random numbers for '{differing}' every time")
                continue
            compared = name == "reference-float64" and only is None
            caveat = _check_agreement(outputs, candidate, float32(), feeds) if compared else ""
        except OnnxGradError as error:
            reasons.append(f"{name}: {first_line(error)}")
            continue
        held = "; ".join(candidate.held)
        note = [f"{name}: no float64 for {held}"] if held and name != "onnxruntime-float32" else []
        choice = Choice(evaluator, "; ".join([*reasons, *note]), outputs, seconds, caveat)
        if compared and seconds * evaluations > time_limit:
            # The first evaluation also warms up.
            seconds = min(seconds, _timed(evaluator, feeds)[1])
            choice = dataclasses.replace(choice, seconds=seconds)
        if compared and seconds * evaluations > time_limit:
            reasons.append(
                f"{name}: {evaluations} evaluations of {seconds:.2g} s exceed the limit of {time_limit:g} s"
            )
            slow = choice
            continue
        return choice
    if slow is not None:
        return dataclasses.replace(slow, reason="; ".join(reasons))
    if redrawn:
        raise ModelError(
            f"'{redrawn}' differs between two evaluations at the same point: the model draws random numbers "
            "(Dropout in training mode, RandomNormal, …) and has no finite differences; give those operators "
            "a seed, or the model an input that turns them off. " + "; ".join(reasons)
        )
    raise InputError("nothing here can evaluate the model. " + "; ".join(reasons))


def build(name: EvaluatorName, candidate: Candidate) -> Evaluator:
    """An evaluator of a model.

    Raises:
        OnnxGradError: It cannot evaluate the model.
    """
    if name == "reference-float64":
        return OnnxReferenceEvaluator(candidate)
    return OnnxRuntimeEvaluator(name, candidate)


def is_random(model: ir.Model) -> bool:
    """Whether there are operators in it that may draw random numbers."""
    return any(_may_draw(node) for node in model.graph.all_nodes())


def _may_draw(node: ir.Node) -> bool:
    if node.op_type != "Dropout":
        return node.op_type in RANDOM_OPERATORS
    training = known.optional_operand(node, 2)
    is_training = known.constant(training)
    return training is not None and (is_training is None or bool(is_training.any()))


def unrepeated(
    evaluate: Callable[[Feeds], Mapping[str, Array]], feeds: Feeds, results: Mapping[str, Array], times: int
) -> str:
    """An output that differs when evaluated again a few times, or nothing."""
    for _ in range(times):
        again = evaluate(feeds)
        for name, result in results.items():
            if relative_distance(again[name], result) > REPEATABLE:
                return name
    return ""


def _redrawn(evaluator: Evaluator, feeds: Feeds, outputs: Mapping[str, Array], of: Candidate) -> str:
    return unrepeated(evaluator, feeds, outputs, TRIALS) if is_random(of.model) else ""


def _timed(evaluator: Evaluator, feeds: Feeds) -> tuple[dict[str, Array], float]:
    start = time.perf_counter()
    outputs = evaluator(feeds)
    return outputs, time.perf_counter() - start


def _check_agreement(
    outputs: Mapping[str, Array], float64: Candidate, float32: Candidate, feeds: Feeds
) -> str:
    """Compare with ONNX Runtime in float32, where that runs at all.

    Returns:
        What to know where the two agree only within the rounding of float32, or could not be compared.

    Raises:
        InputError: They do not agree.
    """
    try:
        evaluator = OnnxRuntimeEvaluator("onnxruntime-float32", float32)
        expected = evaluator(feeds)
    except OnnxGradError:
        return ""
    if _redrawn(evaluator, feeds, expected, float32):
        return "not compared with ONNX Runtime, which draws other random numbers every time"
    least = NEGLIGIBLE * max((_largest(value) for value in expected.values()), default=0.0)
    distances = {name: relative_distance(outputs[name], value, least) for name, value in expected.items()}
    apart = {name: distance for name, distance in distances.items() if distance > REFERENCE_AGREEMENT}
    if not apart:
        return ""
    noise = _noise(evaluator, feeds, expected, outputs, float64)
    for name, distance in apart.items():
        scale = max(_largest(expected[name]), least) or 1.0
        if not distance <= REFERENCE_AGREEMENT + ALLOWANCE * noise[name] / scale:
            raise InputError(
                f"its '{name}' differs from ONNX Runtime's by {distance:.1e} of the largest element"
                + (f", {noise[name] / scale:.1e} of which is rounding" if noise[name] else "")
            )
    return "; ".join(
        f"its '{name}' differs from ONNX Runtime's by {distance:.1e} of the largest element, which "
        f"rounding in float32 explains: that alone changes it by {noise[name]:.1e}"
        for name, distance in apart.items()
    )


def _noise(
    evaluator: OnnxRuntimeEvaluator,
    feeds: Feeds,
    expected: Mapping[str, Array],
    outputs: Mapping[str, Array],
    float64: Candidate,
) -> dict[str, float]:
    """How much rounding in float32 changes each result: that of the inputs, or of all that follows.

    The first is found with ONNX Runtime, the second with the reference evaluator in float64. What cannot be
    measured, such as with scales that are no integers any more, excuses nothing.
    """
    noise = dict.fromkeys(expected, 0.0)
    with contextlib.suppress(InputError):
        noise = rounding_noise(evaluator, evaluator.converted(feeds), expected)
    with contextlib.suppress(InputError):
        of_intermediates = intermediate_noise(
            float64.model,
            lambda model: OnnxReferenceEvaluator(Candidate(model, float64.held))(feeds),
            outputs,
            lambda value: FLOAT32_EPSILON,
        )
        noise = {name: max(noise[name], of_intermediates[name]) for name in expected}
    return noise


def relative_distance(a: Array, b: Array, at_least: float = 0.0) -> float:
    """The largest difference relative to the largest element of `b`; `inf` where the shapes differ.

    Args:
        a: An array.
        b: The one to compare with.
        at_least: What the difference is relative to where `b` is smaller.
    """
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0 or not _is_number(a.dtype):
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        scale = max(_largest(b), at_least) or 1.0
        distance = float(np.max(np.abs(a - b)[~same])) / scale
    return float("inf") if np.isnan(distance) else distance


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fiub" or dtype == ml_dtypes.bfloat16


def _largest(array: Array) -> float:
    if not _is_number(array.dtype):
        return 0.0
    return float(np.max(np.abs(array.astype(np.float64)), initial=0.0, where=np.isfinite(array)))
