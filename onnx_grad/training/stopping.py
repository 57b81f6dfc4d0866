"""Ending a training that does not get better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx_grad.errors import InputError
from onnx_grad.training.state import TrainingState

_LARGER_IS_BETTER = frozenset({"accuracy"})


@dataclass(frozen=True)
class EarlyStopping:
    """Stops when the evaluation has not become better for some epochs.

    Attributes:
        patience: For how many epochs.
        metric: What is watched: `"loss"`, or one of the metrics.
        smallest_change: What counts as better.
        larger_is_better: Whether it should grow; by default only `"accuracy"` should.
        restore_best: Whether the training ends with the weights of its best epoch, a copy of which is kept on
            the host.
    """

    patience: int = 5
    metric: str = "loss"
    smallest_change: float = 0.0
    larger_is_better: bool | None = None
    restore_best: bool = True

    def watch(self, state: TrainingState, evaluation: Mapping[str, float]) -> None:
        """Note in `state` what an evaluation says, and whether the training is over.

        Raises:
            InputError: The evaluation does not give what is watched.
        """
        value = self._watched(evaluation)
        if self._is_better(value, state.best):
            state.best, state.waited = value, 0
        else:
            state.waited += 1
        state.stopped = state.waited >= self.patience

    def _is_better(self, value: float, best: float | None) -> bool:
        if best is None:
            return True
        larger = self.larger_is_better
        if larger is None:
            larger = self.metric in _LARGER_IS_BETTER
        return value > best + self.smallest_change if larger else value < best - self.smallest_change

    def _watched(self, evaluation: Mapping[str, float]) -> float:
        if self.metric not in evaluation:
            raise InputError(
                f"early stopping watches '{self.metric}', and the evaluation gives "
                f"{', '.join(map(repr, evaluation)) or 'nothing'}; give evaluation data and that metric"
            )
        return evaluation[self.metric]
