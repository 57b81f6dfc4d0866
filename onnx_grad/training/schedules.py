"""How the learning rate changes over a training: a factor for each update."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from onnx_grad.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor of the learning rate as a function of the updates made so far.

    Attributes:
        warmup: The number of first updates in which the factor grows linearly from 0 up to its value.
    """

    warmup: int = field(default=0, kw_only=True)

    def factor(self, step: int, total: int) -> float:
        """The factor for the update that `step` others of `total` have come before."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self.after_warmup(step - self.warmup, max(total - self.warmup, 1))

    @property
    def needs_total(self) -> bool:
        """Whether the number of all updates matters."""
        return True

    @abstractmethod
    def after_warmup(self, step: int, total: int) -> float:
        """The factor where steps are counted from the end of the warm-up."""


@dataclass(frozen=True)
class Constant(Schedule):
    """Always 1."""

    @property
    def needs_total(self) -> bool:
        return False

    def after_warmup(self, step: int, total: int) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """γ to the number of full periods that have passed.

    Attributes:
        every: The updates of a period.
        gamma: γ.
    """

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"StepDecay: every={self.every} is no number of updates")

    @property
    def needs_total(self) -> bool:
        return False

    def after_warmup(self, step: int, total: int) -> float:
        return float(self.gamma ** (step // self.every))


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 down to `final` along half a cosine.

    Attributes:
        final: The factor at the end.
    """

    final: float = 0.0

    def after_warmup(self, step: int, total: int) -> float:
        part = min(step / total, 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * part))


@dataclass(frozen=True)
class Linear(Schedule):
    """From 1 down to `final` along a straight line.

    Attributes:
        final: The factor at the end.
    """

    final: float = 0.0

    def after_warmup(self, step: int, total: int) -> float:
        return 1.0 + (self.final - 1.0) * min(step / total, 1.0)


SCHEDULES: Mapping[str, type[Schedule]] = {"constant": Constant, "cosine": Cosine, "linear": Linear}

ScheduleSpec: TypeAlias = "str | Schedule"


def schedule_of(schedule: ScheduleSpec) -> Schedule:
    """The schedule that is meant by a name, or given.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str):
        raise InputError(f"schedule: {schedule!r} is neither the name of a schedule nor a Schedule")
    if schedule not in SCHEDULES:
        raise UnknownNameError.near("schedule", schedule, SCHEDULES, "schedule")
    return SCHEDULES[schedule]()
