"""One check under way: the model at a point, cut open, evaluated, and differentiated both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.checking.choice import Choice, build, choose_evaluator, unrepeated
from onnx_grad.checking.cutting import CutModel, independent_groups
from onnx_grad.checking.directions import (
    Direction,
    directions,
    length_scale,
    number_of_directions,
    number_of_evaluations,
)
from onnx_grad.checking.evaluators import Candidate, Evaluator, EvaluatorName
from onnx_grad.checking.finite_differences import BRIEF_SWEEPS, SWEEPS, Sweep
from onnx_grad.checking.intermediates import intermediate_noise
from onnx_grad.checking.noise import repetitions
from onnx_grad.checking.probing import WeightedOutputs, check_tensor
from onnx_grad.checking.progress import Progress, reporting
from onnx_grad.checking.report import EvaluatorNote, TensorReport
from onnx_grad.checking.subject import Subject, cotangent_names, gradient_names
from onnx_grad.checking.tolerances import FINITE_DIFFERENCES, OWN_PRECISION, Tolerance, looser
from onnx_grad.errors import InputError, ModelError

Array: TypeAlias = np.ndarray[Any, Any]

# From this part of the time limit on, fewer steps are taken.
BRIEF_FROM = 0.25


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
        values = {name: choice.outputs[output] for name, output in cut.outputs.items()}
        for name in self.subject.of:
            wrong = int(np.sum(~np.isfinite(values[name])))
            if wrong:
                raise InputError(
                    f"'{name}' is not finite at this point ({wrong} of {values[name].size} elements), so "
                    "that there are no differences to take; give inputs inside the model's domain"
                )
        if unrepeated(choice.evaluator, self.point, choice.outputs, 1):
            raise ModelError(
                "the model gives something else each time it is evaluated at the same point, so that there "
                "are no differences to take"
            )
        return values

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
        float64 = self.subject.gradient_in_float64
        feeds = dict(self.point)
        for model in (self.subject.gradient, float64.model if isinstance(float64, Candidate) else None):
            inputs = {} if model is None else cotangent_names(model)
            feeds.update({inputs[name]: weight for name, weight in self.cotangents.items() if name in inputs})
        choice = choose_evaluator(
            float64, lambda: self.subject.gradient_in_float32, feeds, only=self.settings.evaluator
        )
        self._note("gradient graph", choice)
        in_float32 = choice.evaluator.name == "onnxruntime-float32" or isinstance(float64, str)
        chosen = self.subject.gradient_in_float32 if in_float32 else float64
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

    def rounding_noise(self, name: str) -> float:
        """How much of a gradient hangs on the last digits of the forward values, as the model stores them."""
        return self._forward_noise.get(name, 0.0)

    @cached_property
    def _forward_noise(self) -> dict[str, float]:
        choice, outputs, feeds = self._gradient_choice
        candidate = self.subject.gradient_in_float64
        if isinstance(candidate, str) or choice.evaluator.precision != "float64":
            return {}
        try:
            noise = intermediate_noise(
                candidate.model,
                lambda model: build(choice.evaluator.name, Candidate(model))(feeds),
                {output: choice.outputs[output] for output in outputs.values()},
                self.subject.epsilon,
            )
        except InputError:
            return {}
        return {name: noise[output] for name, output in outputs.items()}

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
        float64 = self.subject.float64

        @cache
        def in_float32() -> CutModel:
            return self.subject.float32.cut(at, outputs)

        cut = in_float32() if isinstance(float64, str) else float64.cut(at, outputs)
        choice = choose_evaluator(
            float64 if isinstance(float64, str) else Candidate(cut.model, float64.held),
            lambda: Candidate(in_float32().model, self.subject.float32.held),
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
