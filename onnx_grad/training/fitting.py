"""The loop over epochs and batches, with its log, checkpoints and early stopping."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from onnx_grad.errors import InputError
from onnx_grad.training.data import Batches
from onnx_grad.training.log import Log
from onnx_grad.training.progress import Display
from onnx_grad.training.stopping import EarlyStopping

if TYPE_CHECKING:
    from onnx_grad.training.trainer import Trainer

Array: TypeAlias = np.ndarray[Any, Any]


class Fitting:
    """One call of `Trainer.fit`; as a context, it has the log open and the progress shown.

    Args:
        trainer: Who makes the updates.
        training: The data.
        epochs: How many passes over it there are all told.
        evaluate: What to do after each epoch, giving metrics.
        early_stopping: When to stop before.
        folder: Where checkpoints are written.
        every: After how many updates, besides the end of an epoch.
        log: The file of the log.
        show_progress: Whether to show progress.
    """

    def __init__(
        self,
        trainer: Trainer,
        training: Batches,
        epochs: int,
        *,
        evaluate: Callable[[], dict[str, float]] | None,
        early_stopping: EarlyStopping | None,
        folder: Path | None,
        every: int | None,
        log: Path | None,
        show_progress: bool,
    ) -> None:
        self._trainer, self._training, self._epochs = trainer, training, epochs
        self._evaluate, self._early_stopping = evaluate, early_stopping
        self._folder, self._every = folder, every
        self._total = self._updates()
        self._display = Display(self._total, show_progress)
        self._log = None if log is None else Log(log, trainer.state.step)

    def __enter__(self) -> Fitting:
        self._display.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.__exit__()
        if self._log is not None:
            self._log.close()

    def run(self) -> None:
        """All epochs that are left."""
        state = self._trainer.state
        while state.epoch < self._epochs and not state.stopped:
            self._run_epoch()
            self._finish_epoch()
            if self._folder is not None:
                self._trainer.save_checkpoint(self._folder)
        if self._early_stopping is not None and self._early_stopping.restore_best:
            self._trainer.restore_best()

    def _run_epoch(self) -> None:
        trainer, state = self._trainer, self._trainer.state
        remaining = itertools.islice(self._training.epoch(state.epoch), state.batch, None)
        for group in _grouped(remaining, trainer.accumulation):
            factor = trainer.schedule.factor(state.step, self._total or 1)
            result = trainer.step(*group, learning_rate=trainer.learning_rate * factor)
            state.batch += len(group)
            state.loss_sum += result.loss
            state.losses += 1
            self._display.step(state.step, result.loss)
            self._write({"event": "step", "step": state.step, **asdict(result)})
            if self._folder is not None and self._every is not None and state.step % self._every == 0:
                trainer.save_checkpoint(self._folder)
        if not state.losses:
            raise InputError(f"data: epoch {state.epoch + 1} has no batches: the data set is empty")

    def _finish_epoch(self) -> None:
        state = self._trainer.state
        results = {} if self._evaluate is None else self._evaluate()
        line = {
            "event": "epoch",
            "epoch": state.epoch + 1,
            "step": state.step,
            "loss": state.loss_sum / state.losses,
            "evaluation": results,
        }
        state.epoch += 1
        state.batch, state.loss_sum, state.losses = 0, 0.0, 0
        state.history.append(line)
        self._display.epoch(line)
        self._write({**line, "time": time.time()})
        if self._early_stopping is not None:
            self._early_stopping.watch(state, results)
            if state.waited == 0 and self._early_stopping.restore_best:
                self._trainer.keep_best()

    def _write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(line)

    def _updates(self) -> int | None:
        """How many updates there are all told."""
        count, schedule = self._training.count(), self._trainer.schedule
        if count is None and schedule.needs_total:
            raise InputError(
                f"the schedule {schedule} needs the number of batches, which this data does not tell "
                "before; give arrays or a list, or a constant or step schedule"
            )
        return None if count is None else self._epochs * -(-count // self._trainer.accumulation)


def checkpoint_folder(
    checkpoint: str | os.PathLike[str] | None, every: int | None, resume: bool
) -> Path | None:
    """The folder for checkpoints, if any.

    Raises:
        InputError: The options do not fit together.
    """
    if checkpoint is None:
        if every is not None or resume:
            raise InputError("checkpoint_every and resume need checkpoint=, the folder of checkpoints")
        return None
    if every is not None and every < 1:
        raise InputError(f"checkpoint_every={every} is no number of updates")
    folder = Path(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"checkpoint: '{folder}' is a file; give a folder")
    return folder


def _grouped(batches: Iterable[dict[str, Array]], size: int) -> Iterator[list[dict[str, Array]]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group
