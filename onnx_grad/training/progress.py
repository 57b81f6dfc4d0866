"""Showing how far a training is, on stderr, where that is a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """A bar of updates with the last loss, and a line for each epoch; silent where stderr is no terminal.

    Args:
        total: How many updates there will be, if known.
        wanted: Whether to show anything.
    """

    def __init__(self, total: int | None, wanted: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not (wanted and console.is_terminal)
        )
        self._task = self._progress.add_task("training", total=total, told="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, done: int, loss: float) -> None:
        """An update was made."""
        self._progress.update(self._task, completed=done, told=f"loss {loss:.4g}")

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is over."""
        if self._progress.disable:
            return
        told = {"loss": line["loss"], **{f"eval {k}": v for k, v in (line.get("evaluation") or {}).items()}}
        listing = "  ".join(f"{name} {value:.4g}" for name, value in told.items())
        self._progress.console.print(f"epoch {line['epoch']:3d}  {listing}", highlight=False)
