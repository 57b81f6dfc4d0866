"""What changes while a training runs, but for the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingState:
    """How far a training is: all of its state but the tensors.

    Attributes:
        step: Updates made.
        batches: Batches seen, by which random masks are seeded.
        epoch: Epochs finished.
        batch: Batches seen of the epoch that has begun.
        loss_sum: Sum over the updates of that epoch.
        losses: How many there are.
        best: The best value that early stopping has seen.
        waited: Epochs since then.
        stopped: Whether early stopping has ended the training.
        skipped: How many of the updates were left out, as gradients had overflowed with scaled losses.
        loss_scale: What losses are multiplied with, in float16.
        good_steps: Updates since that has changed.
        history: A line for each epoch, as in the log.
    """

    step: int = 0
    batches: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    best: float | None = None
    waited: int = 0
    stopped: bool = False
    skipped: int = 0
    loss_scale: float = 65536.0
    good_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class StepResult:
    """What one update tells.

    Attributes:
        loss: The mean loss of its batches, before the update.
        gradient_norm: The norm of all gradients together, before clipping; `None` where the update was left
            out, as scaled gradients had overflowed.
        learning_rate: The learning rate it was made with.
    """

    loss: float
    gradient_norm: float | None
    learning_rate: float
