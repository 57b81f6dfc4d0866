"""What evaluates a model, and how exactly: the best of three that can.

1. ONNX Runtime in float64: fast and exact, but many operators have no float64 kernel.
2. The ONNX reference evaluator in float64: exact, slow, and wrong for a few operators, so that it is
   compared with ONNX Runtime first. Where the two differ, rounding of float32 excuses no more than it makes.
3. ONNX Runtime in float32: always there, with 7 digits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.float64_operators import FLOAT32_INSIDE, REPLACEMENTS
from onnx_grad.checking.noise import ALLOWANCE, rounding_noise
from onnx_grad.errors import InputError, OnnxGradError
from onnx_grad.sessions import create_session, runtime_errors, runtime_message, without_external_data

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = Mapping[str, Any]
EvaluatorName: TypeAlias = Literal["onnxruntime-float64", "reference-float64", "onnxruntime-float32"]

EVALUATORS: tuple[EvaluatorName, ...] = (
    "onnxruntime-float64",
    "reference-float64",
    "onnxruntime-float32",
)

# The reference evaluator counts as wrong when an output is further from ONNX Runtime's, relative to its
# largest element: float32 rounding stays below, a wrong formula does not.
REFERENCE_AGREEMENT = 1e-3

# An output that is smaller than this part of the largest one is what rounding left of others.
NEGLIGIBLE = 1e-3

# Whatever the reference evaluator raises for an operator it lacks or mishandles: it has no exceptions of
# its own.
_REFERENCE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

_SILENT = 4


class Evaluator(Protocol):
    """A compiled model: arrays in, all outputs in float64 out."""

    name: EvaluatorName

    @property
    def precision(self) -> Literal["float64", "float32"]:
        """The precision that the evaluation really has."""

    def converted(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the model reads, in the types it reads them in."""

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate the model; floats may be given in any precision."""


@dataclass(frozen=True)
class Candidate:
    """A model in a precision to be evaluated in.

    Attributes:
        model: The model, all of it in float64, or in float32.
        held: Nodes that stay in lower precision inside a float64 model, as text.
    """

    model: ir.Model
    held: tuple[str, ...] = ()


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


class OnnxRuntimeEvaluator:
    """ONNX Runtime on the CPU."""

    def __init__(self, name: EvaluatorName, candidate: Candidate) -> None:
        self.name = name
        self._exact = name == "onnxruntime-float64" and not candidate.held
        self._session = create_session(candidate.model, log_severity_level=_SILENT)
        self._inputs = {value.name or "": value for value in candidate.model.graph.inputs}
        self._outputs = [value.name or "" for value in candidate.model.graph.outputs]

    @property
    def precision(self) -> Literal["float64", "float32"]:
        """Float32 where a node of a float64 model is held in it."""
        return "float64" if self._exact else "float32"

    def converted(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the model reads, in the types it reads them in."""
        return {n: _converted(v, self._inputs[n]) for n, v in feeds.items() if n in self._inputs}

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate the model.

        Raises:
            InputError: ONNX Runtime fails with these inputs.
        """
        try:
            outputs = self._session.run(self._outputs, self.converted(feeds))
        except runtime_errors() as error:
            raise InputError(f"ONNX Runtime cannot evaluate the model: {runtime_message(error)}") from error
        return _widened(self._outputs, outputs)


class ReferenceFloat64Evaluator:
    """The ONNX reference evaluator, with float64 replacements for some of its operators."""

    name: EvaluatorName = "reference-float64"

    def __init__(self, candidate: Candidate) -> None:
        self._exact = not candidate.held
        nodes = candidate.model.graph.all_nodes()
        lossy = sorted({node.op_type for node in nodes} & FLOAT32_INSIDE)
        if lossy and self._exact:
            raise InputError(f"it computes {', '.join(lossy)} in float32")
        self._inputs = {value.name or "": value for value in candidate.model.graph.inputs}
        self._outputs = [value.name or "" for value in candidate.model.graph.outputs]
        proto = ir.to_proto(without_external_data(candidate.model))
        try:
            self._evaluator = ReferenceEvaluator(proto, new_ops=list(REPLACEMENTS))
        except _REFERENCE_ERRORS as error:
            raise InputError(f"it cannot load the model: {_first_line(error)}") from error

    @property
    def precision(self) -> Literal["float64", "float32"]:
        """Float32 where a node is held in it."""
        return "float64" if self._exact else "float32"

    def converted(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the model reads, in the types it reads them in."""
        return {n: _converted(v, self._inputs[n]) for n, v in feeds.items() if n in self._inputs}

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate the model.

        Raises:
            InputError: The reference evaluator fails with these inputs.
        """
        try:
            with np.errstate(all="ignore"):
                outputs = self._evaluator.run(self._outputs, self.converted(feeds))
        except _REFERENCE_ERRORS as error:
            raise InputError(f"it fails: {_first_line(error)}") from error
        return _widened(self._outputs, outputs)


def choose_evaluator(
    float64: Candidate | str,
    float32: Candidate,
    feeds: Feeds,
    *,
    evaluations: int = 1,
    time_limit: float = float("inf"),
    only: EvaluatorName | None = None,
) -> Choice:
    """The best evaluator that can evaluate a model at `feeds`.

    Args:
        float64: The model in float64, or why there is none.
        float32: The model in float32.
        feeds: Inputs to try it with.
        evaluations: How often it is going to be evaluated at least.
        time_limit: Seconds these evaluations may take with the reference evaluator.
        only: The evaluator to use, instead of the best one.

    Raises:
        InputError: None can evaluate the model; the message has each one's reason.
    """
    build: dict[EvaluatorName, Callable[[Candidate], Evaluator]] = {
        "onnxruntime-float64": lambda candidate: OnnxRuntimeEvaluator("onnxruntime-float64", candidate),
        "reference-float64": ReferenceFloat64Evaluator,
        "onnxruntime-float32": lambda candidate: OnnxRuntimeEvaluator("onnxruntime-float32", candidate),
    }
    reasons: list[str] = []
    slow: Choice | None = None
    for name in EVALUATORS if only is None else (only,):
        candidate = float32 if name == "onnxruntime-float32" else float64
        if isinstance(candidate, str):
            reasons.append(f"{name}: {candidate}")
            continue
        try:
            evaluator = build[name](candidate)
            outputs, seconds = _timed(evaluator, feeds)
            compared = name == "reference-float64" and only is None
            caveat = _check_agreement(outputs, float32, feeds) if compared else ""
        except OnnxGradError as error:
            reasons.append(f"{name}: {_first_line(error)}")
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
    raise InputError("nothing here can evaluate the model. " + "; ".join(reasons))


def _timed(evaluator: Evaluator, feeds: Feeds) -> tuple[dict[str, Array], float]:
    start = time.perf_counter()
    outputs = evaluator(feeds)
    return outputs, time.perf_counter() - start


def _check_agreement(outputs: Mapping[str, Array], float32: Candidate, feeds: Feeds) -> str:
    """Compare with ONNX Runtime in float32, where that runs at all.

    Returns:
        What to know where the two agree only within the rounding of float32; empty elsewhere.

    Raises:
        InputError: They do not agree.
    """
    try:
        evaluator = OnnxRuntimeEvaluator("onnxruntime-float32", float32)
        expected = evaluator(feeds)
    except OnnxGradError:
        return ""
    least = NEGLIGIBLE * max((_largest(value) for value in expected.values()), default=0.0)
    distances = {name: relative_distance(outputs[name], value, least) for name, value in expected.items()}
    apart = {name: distance for name, distance in distances.items() if distance > REFERENCE_AGREEMENT}
    if not apart:
        return ""
    noise = rounding_noise(evaluator, evaluator.converted(feeds), expected)
    for name, distance in apart.items():
        scale = max(_largest(expected[name]), least) or 1.0
        if not distance <= REFERENCE_AGREEMENT + ALLOWANCE * noise[name] / scale:
            raise InputError(
                f"its '{name}' differs from ONNX Runtime's by {distance:.1e} of the largest element"
                + (f", {noise[name] / scale:.1e} of which is rounding" if noise[name] else "")
            )
    return "; ".join(
        f"its '{name}' differs from ONNX Runtime's by {distance:.1e} of the largest element, which "
        f"rounding in float32 explains: the last digit of the inputs alone changes it by {noise[name]:.1e}"
        for name, distance in apart.items()
    )


def relative_distance(a: Array, b: Array, at_least: float = 0.0) -> float:
    """The largest difference relative to the largest element of `b`; `inf` where the shapes differ.

    Args:
        a: An array.
        b: The one to compare with.
        at_least: What the difference is relative to where `b` is smaller.
    """
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0 or a.dtype.kind not in "fiub":
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        scale = max(_largest(b), at_least) or 1.0
        distance = float(np.max(np.abs(a - b)[~same])) / scale
    return float("inf") if np.isnan(distance) else distance


def _largest(array: Array) -> float:
    if array.dtype.kind not in "fiub":
        return 0.0
    return float(np.max(np.abs(array.astype(np.float64)), initial=0.0, where=np.isfinite(array)))


def _converted(value: Any, declared: ir.Value) -> Any:
    """`value` in the float type that the model declares."""
    if isinstance(value, list):
        return [_converted(item, declared) for item in value]
    floats = {ir.DataType.DOUBLE: np.float64, ir.DataType.FLOAT: np.float32}
    wanted = floats.get(declared.dtype) if declared.dtype is not None else None
    if wanted is None or not isinstance(value, np.ndarray):
        return value
    return value.astype(wanted)


def _widened(names: list[str], outputs: Any) -> dict[str, Array]:
    return {
        name: value.astype(np.float64) if _is_low_precision(value) else value
        for name, value in zip(names, outputs, strict=True)
    }


def _is_low_precision(value: Any) -> bool:
    if not isinstance(value, (np.ndarray, np.generic)):
        return False
    return value.dtype != np.float64 and (value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
