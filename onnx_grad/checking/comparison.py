"""One check under way: the model at a point, cut open, evaluated, and differentiated both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.checking.cutting import CutModel, independent_groups
from onnx_grad.checking.directions import (
    Direction,
    directions,
    length_scale,
    number_of_directions,
    number_of_evaluations,
)
from onnx_grad.checking.evaluators import (
    Candidate,
    Choice,
    Evaluator,
    EvaluatorName,
    choose_evaluator,
    relative_distance,
)
from onnx_grad.checking.finite_differences import BRIEF_SWEEPS, SWEEPS, Sweep
from onnx_grad.checking.noise import repetitions
from onnx_grad.checking.probing import WeightedOutputs, check_tensor
from onnx_grad.checking.progress import Progress, reporting
from onnx_grad.checking.report import EvaluatorNote, TensorReport
from onnx_grad.checking.subject import InPrecision, Subject, cotangent_names, gradient_names
from onnx_grad.checking.tolerances import FINITE_DIFFERENCES, OWN_PRECISION, Tolerance, looser
from onnx_grad.errors import InputError, ModelError

Array: TypeAlias = np.ndarray[Any, Any]

# From this part of the time limit on, fewer steps are taken.
BRIEF_FROM = 0.25

# Two evaluations of a model that is a function differ by less, relative to the largest element.
REPEATABLE = 1e-4


@dataclass(frozen=True)
class Settings:
    """What a check is to do, as in `check_gradients`."""

    seed: int = 0
    rtol: float | None = None
    atol: float | None = None
    evaluator: EvaluatorName | None = None
    max_coordinates: int = 64
    random_directions: int = 3
    time_limit: float = 120.0

    def generator(self, *stream: int) -> np.random.Generator:
        """A source of random numbers that does not depend on what the others were used for."""
        return np.random.default_rng([self.seed, *stream])


@dataclass
class Check:
    """One check under way.

    Attributes:
        subject: The model under check.
        point: Its inputs.
        settings: What to do.
        notes: What evaluated the model and the gradient graph.
        values: The tensors in `wrt`, `of` and `stop` at the point.
        cotangents: The weights of the tensors in `of`.
        gradients: What the gradient graph gives at the point.
    """

    subject: Subject
    point: dict[str, Any]
    settings: Settings
    notes: list[EvaluatorNote] = field(default_factory=list)
    values: dict[str, Array] = field(init=False)
    cotangents: dict[str, Array] = field(init=False)
    gradients: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        self._float64 = self.subject.in_precision(ir.DataType.DOUBLE)
        float32 = self.subject.in_precision(ir.DataType.FLOAT)
        # An operator without a public specification runs only in the type it has.
        self._float32 = InPrecision(self.subject.model) if isinstance(float32, str) else float32
        self.values = self._values()
        self.cotangents = self._random_cotangents()
        self._gradient_choice = self._evaluated_gradients()
        choice, outputs, _ = self._gradient_choice
        self.gradients = {name: choice.outputs[output] for name, output in outputs.items()}

    def finite_differences(self, progress: Progress | None = None) -> list[TensorReport]:
        """The report on every tensor in `wrt`, in that order."""
        reports: dict[str, TensorReport] = {}
        with reporting(progress, sum(map(self._number_of_lines, self.subject.wrt))) as advance:
            for group, cut, feeds, evaluator, sweeps in self._forward_models():
                weights = {cut.outputs[name]: w for name, w in self.cotangents.items()}
                for name in group:
                    if self.values[name].shape != self.gradients[name].shape:
                        reports[name] = self._wrong_shape(name)
                        continue
                    reports[name] = check_tensor(
                        WeightedOutputs(evaluator, feeds, name, weights),
                        self.gradients[name],
                        self._lines(name),
                        self._tolerance(evaluator),
                        dtype=str(self.subject.dtype(name)),
                        rtol=self.settings.rtol,
                        atol=self.settings.atol,
                        advance=advance,
                        sweeps=sweeps,
                        repetitions=partial(self._repetitions, name),
                    )
        return [reports[name] for name in self.subject.wrt]

    def natural_size(self, name: str) -> float:
        """The size of the weighted outputs per size of a tensor, which its gradient is to be judged by."""
        weighted = [np.linalg.norm(self.values[y] * w) for y, w in self.cotangents.items()]
        return float(np.linalg.norm(weighted)) / length_scale(self.values[name])

    def _values(self) -> dict[str, Array]:
        """The tensors of interest at the point, which must be finite and repeatable."""
        cut, choice = self._forward((), (*self.subject.of, *self.subject.wrt, *self.subject.stop), self.point)
        first, second = choice.outputs, choice.evaluator(self.point)
        for name in self.subject.of:
            value = first[cut.outputs[name]]
            wrong = int(np.sum(~np.isfinite(value)))
            if wrong:
                raise InputError(
                    f"'{name}' is not finite at this point ({wrong} of {value.size} elements), so that there "
                    "are no differences to take; give inputs inside the model's domain"
                )
            if relative_distance(second[cut.outputs[name]], value) > REPEATABLE:
                raise ModelError(
                    f"'{name}' differs between two evaluations at the same point: the model draws random "
                    "numbers (Dropout in training mode, RandomNormal, …) and has no finite differences"
                )
        return {name: first[output] for name, output in cut.outputs.items()}

    def _random_cotangents(self) -> dict[str, Array]:
        """Random weights of the outputs, rounded to the outputs' own type."""
        generator = self.settings.generator(1)
        weights = {}
        for name in self.subject.of:
            weight = np.asarray(generator.standard_normal(self.values[name].shape))
            weights[name] = weight.astype(self.subject.dtype(name)).astype(np.float64)
        return weights

    def _evaluated_gradients(self) -> tuple[Choice, dict[str, str], dict[str, Any]]:
        """The gradient graph evaluated at the point, which output is whose gradient, and the inputs."""
        float64 = self.subject.gradient_in(self._float64)
        float32 = self.subject.gradient_in(self._float32)
        if isinstance(float32, str):
            float32 = Candidate(self.subject.gradient)
        feeds = dict(self.point)
        for candidate in (float64, float32):
            if isinstance(candidate, Candidate):
                inputs = cotangent_names(candidate.model)
                feeds.update({inputs[name]: weight for name, weight in self.cotangents.items()})
        choice = choose_evaluator(float64, float32, feeds, only=self.settings.evaluator)
        self._note("gradient graph", choice)
        chosen = float32 if choice.evaluator.name == "onnxruntime-float32" else float64
        assert isinstance(chosen, Candidate)
        return choice, gradient_names(chosen.model), feeds

    def _repetitions(self, name: str) -> list[Array]:
        """The gradient of one tensor again, from inputs that differ in their last digit."""
        return [gradients[name] for gradients in self._repeated_gradients]

    @cached_property
    def _repeated_gradients(self) -> list[dict[str, Array]]:
        choice, outputs, feeds = self._gradient_choice
        repeated = repetitions(choice.evaluator, choice.evaluator.converted(feeds))
        return [{name: result[output] for name, output in outputs.items()} for result in repeated]

    def _forward_models(
        self,
    ) -> Iterator[tuple[list[str], CutModel, dict[str, Any], Evaluator, Sequence[Sweep]]]:
        """For each group of tensors that can be perturbed in one model: what it takes to do so.

        That is the model, its inputs, what evaluates it, and the steps to take.
        """
        for group in independent_groups(self.subject.model, self.subject.wrt):
            at = (*group, *self.subject.stop)
            feeds = {**self.point, **{name: self.values[name] for name in at}}
            cut, choice = self._forward(at, self.subject.of, feeds, self._evaluations(group, brief=True))
            thorough = self._evaluations(group, brief=False) * choice.seconds
            exact = (choice.evaluator.name, choice.evaluator.precision) == ("reference-float64", "float64")
            sweeps: Sequence[Sweep] = SWEEPS[choice.evaluator.precision]
            if exact and thorough > BRIEF_FROM * self.settings.time_limit:
                sweeps = BRIEF_SWEEPS
                self._note("model", choice, f"at few steps, as each evaluation takes {choice.seconds:.2g} s")
            else:
                self._note("model", choice)
            yield group, cut, feeds, choice.evaluator, sweeps

    def _evaluations(self, group: Sequence[str], *, brief: bool) -> int:
        """About how often the model is going to be evaluated for the tensors in `group`."""
        most = (BRIEF_SWEEPS if brief else SWEEPS["float64"])[0].evaluations
        limit, count = self.settings.max_coordinates, self.settings.random_directions
        return sum(
            number_of_evaluations(self.values[name].size, limit, count, least=min(most, 12), most=most)
            for name in group
        )

    def _forward(
        self, at: Sequence[str], outputs: Sequence[str], feeds: Mapping[str, Any], evaluations: int = 1
    ) -> tuple[CutModel, Choice]:
        """The model with the tensors `at` as inputs and `outputs` as outputs, and what evaluates it."""
        cut = self._float32.cut(at, outputs)
        float64 = self._float64
        choice = choose_evaluator(
            float64 if isinstance(float64, str) else Candidate(float64.cut(at, outputs).model, float64.held),
            Candidate(cut.model, self._float32.held),
            feeds,
            evaluations=evaluations,
            time_limit=self.settings.time_limit,
            only=self.settings.evaluator,
        )
        return cut, choice

    def _note(self, role: str, choice: Choice, brevity: str = "") -> None:
        reason = choice.reason
        if role == "model" and self.subject.lifted:
            reason = "; ".join(filter(None, ("lifted to opset 18, as nothing runs older ones", reason)))
        caveat = "; ".join(filter(None, (choice.caveat, brevity)))
        note = EvaluatorNote(role, choice.evaluator.name, choice.evaluator.precision, reason, caveat)
        if note not in self.notes:
            self.notes.append(note)

    def _number_of_lines(self, name: str) -> int:
        settings = self.settings
        if self.values[name].shape != self.gradients[name].shape:
            return 0
        return number_of_directions(
            self.gradients[name], settings.max_coordinates, settings.random_directions
        )

    def _lines(self, name: str) -> Iterator[Direction]:
        settings = self.settings
        return directions(
            self.values[name],
            self.gradients[name],
            settings.max_coordinates,
            settings.random_directions,
            settings.generator(2, self.subject.wrt.index(name)),
        )

    def _tolerance(self, evaluator: Evaluator) -> Tolerance:
        tolerance = FINITE_DIFFERENCES[evaluator.precision]
        if self._gradient_choice[0].evaluator.precision == "float32":
            return looser(tolerance, OWN_PRECISION[ir.DataType.FLOAT])
        return tolerance

    def _wrong_shape(self, name: str) -> TensorReport:
        shape, given = self.values[name].shape, self.gradients[name].shape
        return TensorReport(
            name=name,
            shape=shape,
            dtype=str(self.subject.dtype(name)),
            problem=f"the gradient has the shape {list(given)}, the tensor {list(shape)}",
        )
