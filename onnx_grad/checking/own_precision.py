"""The gradient as it ships: in the model's own type, by ONNX Runtime, on the caller's providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from onnx_grad.checking.choice import TRIALS, is_random, unrepeated
from onnx_grad.checking.noise import ALLOWANCE, rounding_noise
from onnx_grad.checking.report import EvaluatorNote, OwnPrecision
from onnx_grad.checking.subject import Subject
from onnx_grad.checking.tolerances import NEGLIGIBLE_GRADIENT, OWN_PRECISION
from onnx_grad.errors import InputError, ModelError, OnnxGradError, RuntimeUnavailableError
from onnx_grad.runtime import GradientFunction
from onnx_grad.sessions import MissingKernelError, Provider, create_session, runtime_errors
from onnx_grad.signature import dtype_name, dtype_of

Array: TypeAlias = np.ndarray[Any, Any]
Run: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Array]]

# What goes wrong is raised, and reported.
SILENT = 4
_ROLE = "gradient graph as shipped"


@dataclass(frozen=True)
class Shipped:
    """What the gradient graph gives in the model's own type.

    Attributes:
        gradients: The gradients by name; `None` where it does not run, or gives others every time.
        note: What ran it, or why nothing did.
        problem: Set where the gradient graph does not run but the model itself does.
        run: Runs the gradient graph again; its inputs are the point and, by tensor, the cotangents.
        feeds: What it was run with.
    """

    gradients: Mapping[str, Array] | None
    note: EvaluatorNote
    problem: str = ""
    run: Run | None = None
    feeds: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def noise(self) -> dict[str, float]:
        """The largest change of each gradient when its inputs and cotangents change in their last digit."""
        if self.run is None or self.gradients is None:
            return {}
        return rounding_noise(self.run, self.feeds, self.gradients)


def run_as_shipped(
    subject: Subject,
    point: Mapping[str, Any],
    cotangents: Mapping[str, Array],
    providers: Sequence[Provider] | None,
) -> Shipped:
    """Run the gradient graph as it is.

    Args:
        subject: The model under check.
        point: Its inputs.
        cotangents: The cotangents, in float64.
        providers: ONNX Runtime's list of execution providers; `None` is the CPU.

    Raises:
        RuntimeUnavailableError: A provider that was asked for is not there.
    """
    try:
        function = GradientFunction.from_gradient_model(
            subject.gradient, providers=providers, log_severity_level=SILENT
        )
        weights = {_cotangent(n): w.astype(subject.dtype(n)) for n, w in cotangents.items()}
        feeds = {**point, **weights}

        def run(values: Mapping[str, Any]) -> Mapping[str, Array]:
            inputs = {name: values[name] for name in point}
            return function(inputs, cotangents={n: values[_cotangent(n)] for n in cotangents}).gradients

        gradients = run(feeds)
    except (MissingKernelError, ModelError, InputError) as error:
        problem = ""
        if _runs(subject, point, providers):
            problem = f"ONNX Runtime runs the model, but not its gradient graph: {error}"
        return Shipped(None, EvaluatorNote(_ROLE, "not run", "", str(error)), problem)
    except RuntimeUnavailableError as error:
        if providers is not None:
            raise
        return Shipped(None, EvaluatorNote(_ROLE, "not run", "", str(error)))
    types = sorted({dtype_name(dtype_of(gradient)) for gradient in gradients.values()})
    runner = f"onnxruntime on {function.providers[0].removesuffix('ExecutionProvider')}"
    if is_random(subject.gradient) and unrepeated(run, feeds, gradients, TRIALS):
        reason = "not compared, as it draws other random numbers in every run"
        return Shipped(None, EvaluatorNote(_ROLE, runner, ", ".join(types), reason))
    return Shipped(gradients, EvaluatorNote(_ROLE, runner, ", ".join(types), ""), "", run, feeds)


def _cotangent(name: str) -> str:
    """What no input of a model is called."""
    return f"cotangent of {name}"


def compare(
    gradient: Array,
    reference: Array,
    *,
    size: float,
    noise: float = 0.0,
    rtol: float | None = None,
    atol: float | None = None,
) -> OwnPrecision:
    """Compare a gradient as it ships with the same in higher precision, element by element.

    Args:
        gradient: The gradient in the model's own type.
        reference: The gradient in the precision that was compared with finite differences.
        size: The size of the outputs per size of the tensor: the gradient's natural size.
        noise: What rounding changes in `gradient`, which excuses a multiple of that.
        rtol: Relative tolerance, where it is larger than that for the type.
        atol: Absolute tolerance, likewise.
    """
    dtype = dtype_of(gradient)
    if gradient.shape != reference.shape:
        return _all_wrong(gradient, reference, dtype_name(dtype))
    tolerance = OWN_PRECISION[dtype]
    given, wanted = gradient.astype(np.float64).ravel(), reference.ravel()
    scale = float(np.max(np.abs(wanted), initial=0.0))
    comparable = max(scale, NEGLIGIBLE_GRADIENT * size) or 1.0
    if gradient.size == 0:
        return OwnPrecision(dtype_name(dtype), "", 0.0, 0.0, 0.0, 0.0, 0.0, passed=True)
    with np.errstate(invalid="ignore"):
        distance = np.where(given == wanted, 0.0, np.abs(given - wanted))
        distance = np.where(np.isnan(distance), np.inf, distance)
        largest = np.maximum(np.abs(given), np.abs(wanted))
        relative = max(tolerance.relative, rtol or 0.0)
        absolute = max(tolerance.scaled * scale + tolerance.floor * size, atol or 0.0) + ALLOWANCE * noise
        allowed = relative * np.where(np.isfinite(largest), largest, 0.0) + absolute
        excess = np.divide(distance, allowed, out=np.full_like(distance, np.inf), where=allowed > 0)
    excess[distance == 0.0] = 0.0
    worst = int(np.argmax(excess))
    return OwnPrecision(
        dtype=dtype_name(dtype),
        where=str([int(i) for i in np.unravel_index(worst, gradient.shape)]),
        gradient=float(given[worst]),
        reference=float(wanted[worst]),
        max_abs_error=float(distance.max()),
        max_rel_error=float(distance.max()) / comparable,
        tolerance=float(allowed[worst]),
        passed=bool((excess <= 1.0).all()),
        noise=noise,
        largest=scale,
    )


def _all_wrong(gradient: Array, reference: Array, dtype: str) -> OwnPrecision:
    where = f"shape {list(gradient.shape)} instead of {list(reference.shape)}"
    inf = float("inf")
    return OwnPrecision(dtype, where, inf, inf, inf, inf, 0.0, passed=False)


def _runs(subject: Subject, point: Mapping[str, Any], providers: Sequence[Provider] | None) -> bool:
    """Whether ONNX Runtime runs the model itself."""
    try:
        session = create_session(subject.model, providers=providers, log_severity_level=SILENT)
        session.run(None, dict(point))
    except OnnxGradError:
        return False
    except runtime_errors():
        return False
    return True
