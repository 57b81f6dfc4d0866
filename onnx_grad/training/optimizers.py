"""How a parameter moves: the optimizers, with PyTorch's semantics, as formulas over the graph builder.

An optimizer is a small frozen object. `update` gives what a parameter θ and its slots (the state kept for
each element) become, for the gradient g, the learning rate η and the number t of this update, from one on.
All coefficients are computed as PyTorch computes them: in float64 from the numbers given, and then rounded.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.errors import InputError

Slots: TypeAlias = dict[str, ir.Value]


@dataclass(frozen=True)
class Step:
    """What all parameters have in common in one update.

    Attributes:
        op: Builds the nodes.
        learning_rate: η, a scalar float64.
        number: t, a scalar float64: 1 in the first update.
    """

    op: Builder
    learning_rate: ir.Value
    number: ir.Value

    def as_type(self, coefficient: ir.Value, like: ir.Value) -> ir.Value:
        """A float64 `coefficient` rounded to the type of `like`."""
        return self.op.CastLike(coefficient, like)


@dataclass(frozen=True)
class Optimizer(ABC):
    """One rule by which parameters are updated."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if field.name == "betas" and isinstance(value, tuple) else (value,)
            wanted = 2 if field.name == "betas" else 1
            if len(numbers) != wanted or not all(isinstance(n, float | int) and n >= 0.0 for n in numbers):
                kind = "a pair of numbers" if wanted == 2 else "a number"
                raise InputError(f"{type(self).__name__}: {field.name}={value!r} is not {kind} from 0 on")
            if field.name in _BELOW_ONE and not all(n < 1.0 for n in numbers):
                raise InputError(f"{type(self).__name__}: {field.name}={value} is not in [0, 1)")

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, float]:
        """The names of the slots, and the number that they are filled with at the start."""

    @abstractmethod
    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        """The new parameter, and its new slots."""

    def replaced(self, options: Mapping[str, Any]) -> Optimizer:
        """The same with other `options`, such as the weight decay of a parameter group.

        Raises:
            InputError: It has no such option, or one would change its slots.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in names:
                raise InputError(
                    f"{type(self).__name__} has no option '{name}'; it has {', '.join(names) or 'none'}"
                )
        return dataclasses.replace(self, **options)


_BELOW_ONE = frozenset({"betas", "momentum", "alpha"})


@dataclass(frozen=True)
class SGD(Optimizer):
    """θ − η·b, b = μ·b + (1 − τ)·(g + λθ): stochastic gradient descent with momentum, as `torch.optim.SGD`.

    Attributes:
        momentum: μ; without it there is no slot, and b = g + λθ.
        nesterov: Whether the step is along g + μ·b.
        dampening: τ, which does not apply to the first step.
        weight_decay: λ.
    """

    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise InputError("SGD: nesterov needs a momentum, and no dampening")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0} if self.momentum else {}

    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        op = step.op
        g = _decayed_gradient(op, theta, g, self.weight_decay)
        new: Slots = {}
        if self.momentum:
            fresh = g
            if self.dampening:
                first = op.Equal(step.number, op.scalar_like(1.0, step.number))
                factor = op.Where(first, op.scalar_like(1.0, g), op.scalar_like(1.0 - self.dampening, g))
                fresh = op.Mul(g, factor)
            buffer = op.Add(op.Mul(slots["momentum"], self.momentum), fresh)
            new["momentum"] = buffer
            g = op.Add(g, op.Mul(buffer, self.momentum)) if self.nesterov else buffer
        return op.Sub(theta, op.Mul(g, step.as_type(step.learning_rate, g))), new


@dataclass(frozen=True)
class Adam(Optimizer):
    """θ − η·m̂/(√v̂ + ε) with m = β₁m + (1 − β₁)g and v = β₂v + (1 − β₂)g², as `torch.optim.Adam`.

    Attributes:
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ, of which λθ is added to the gradient.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def slots(self) -> Mapping[str, float]:
        return {"mean": 0.0, "variance": 0.0}

    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        return self._moved(step, theta, _decayed_gradient(step.op, theta, g, self.weight_decay), slots)

    def _moved(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        op, (beta1, beta2) = step.op, self.betas
        mean = _towards(op, slots["mean"], g, 1.0 - beta1)
        variance = op.Add(op.Mul(slots["variance"], beta2), op.Mul(op.Mul(g, 1.0 - beta2), g))
        rate = op.Div(step.learning_rate, _bias_correction(step, beta1))
        root = op.Sqrt(_bias_correction(step, beta2))
        denominator = op.Add(op.Div(op.Sqrt(variance), step.as_type(root, g)), self.eps)
        change = op.Mul(op.Div(mean, denominator), step.as_type(rate, g))
        return op.Sub(theta, change), {"mean": mean, "variance": variance}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam on (1 − ηλ)θ: with weight decay apart from the gradient, as `torch.optim.AdamW`."""

    weight_decay: float = 1e-2

    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        return self._moved(step, _shrunk(step, theta, self.weight_decay), g, slots)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """θ − η·g/(√v + ε), v = αv + (1 − α)g², as `torch.optim.RMSprop`.

    Attributes:
        alpha: α.
        eps: ε.
        weight_decay: λ, of which λθ is added to the gradient.
        momentum: μ, of a buffer b = μ·b + g/(√v + ε) that takes the place of the quotient.
        centered: Whether v is less the square of the running mean of g.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    @property
    def slots(self) -> Mapping[str, float]:
        slots = {"variance": 0.0}
        if self.centered:
            slots["mean"] = 0.0
        if self.momentum:
            slots["momentum"] = 0.0
        return slots

    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        op = step.op
        g = _decayed_gradient(op, theta, g, self.weight_decay)
        variance = op.Add(op.Mul(slots["variance"], self.alpha), op.Mul(op.Mul(g, 1.0 - self.alpha), g))
        new = {"variance": variance}
        if self.centered:
            new["mean"] = _towards(op, slots["mean"], g, 1.0 - self.alpha)
            variance = op.Sub(variance, op.Mul(new["mean"], new["mean"]))
        change = op.Div(g, op.Add(op.Sqrt(variance), self.eps))
        if self.momentum:
            change = new["momentum"] = op.Add(op.Mul(slots["momentum"], self.momentum), change)
        return op.Sub(theta, op.Mul(change, step.as_type(step.learning_rate, g))), new


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """θ − η/(1 + (t − 1)·δ)·g/(√s + ε), s = s + g², as `torch.optim.Adagrad`.

    Attributes:
        learning_rate_decay: δ.
        weight_decay: λ, of which λθ is added to the gradient.
        initial_sum: What s starts from.
        eps: ε.
    """

    learning_rate_decay: float = 0.0
    weight_decay: float = 0.0
    initial_sum: float = 0.0
    eps: float = 1e-10

    @property
    def slots(self) -> Mapping[str, float]:
        return {"sum": self.initial_sum}

    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        op = step.op
        g = _decayed_gradient(op, theta, g, self.weight_decay)
        total = op.Add(slots["sum"], op.Mul(g, g))
        slowdown = op.Add(op.Mul(op.Sub(step.number, 1.0), self.learning_rate_decay), 1.0)
        rate = op.Div(step.learning_rate, slowdown)
        change = op.Div(g, op.Add(op.Sqrt(total), self.eps))
        return op.Sub(theta, op.Mul(change, step.as_type(rate, g))), {"sum": total}


@dataclass(frozen=True)
class Lion(Optimizer):
    """(1 − ηλ)θ − η·sign(β₁m + (1 − β₁)g), then m = β₂m + (1 − β₂)g (Chen et al. 2023).

    Attributes:
        betas: β₁ and β₂.
        weight_decay: λ.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def update(self, step: Step, theta: ir.Value, g: ir.Value, slots: Slots) -> tuple[ir.Value, Slots]:
        op, (beta1, beta2), momentum = step.op, self.betas, slots["momentum"]
        blend = op.Add(op.Mul(momentum, beta1), op.Mul(g, 1.0 - beta1))
        direction = op.Sign(blend)
        shrunk = _shrunk(step, theta, self.weight_decay)
        new = op.Sub(shrunk, op.Mul(direction, step.as_type(step.learning_rate, g)))
        # As β₂m + (1 − β₂)g, from the blend: so it can be written over m, of which the blend is made first.
        return new, {"momentum": op.Add(blend, op.Mul(op.Sub(momentum, g), beta2 - beta1))}


OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "lion": Lion,
}


def _decayed_gradient(op: Builder, theta: ir.Value, g: ir.Value, weight_decay: float) -> ir.Value:
    """g + λθ."""
    return op.Add(g, op.Mul(theta, weight_decay)) if weight_decay else g


def _shrunk(step: Step, theta: ir.Value, weight_decay: float) -> ir.Value:
    """(1 − ηλ)·θ."""
    if not weight_decay:
        return theta
    op = step.op
    factor = op.Sub(op.scalar_like(1.0, step.number), op.Mul(step.learning_rate, weight_decay))
    return op.Mul(theta, step.as_type(factor, theta))


def _towards(op: Builder, average: ir.Value, g: ir.Value, part: float) -> ir.Value:
    """average + part·(g − average)."""
    return op.Add(average, op.Mul(op.Sub(g, average), part))


def _bias_correction(step: Step, beta: float) -> ir.Value:
    """1 − βᵗ, in float64."""
    op = step.op
    power = op.Pow(op.scalar_like(beta, step.number), step.number)
    return op.Sub(op.scalar_like(1.0, power), power)
