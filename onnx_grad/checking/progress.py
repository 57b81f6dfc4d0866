"""How far a check is: for a caller's function, or a bar on stderr when that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.progress import Progress as Bar

Progress: TypeAlias = Callable[[int, int, str], None]


@contextlib.contextmanager
def reporting(progress: Progress | None, total: int) -> Iterator[Callable[[str], None]]:
    """A function to be called with the name of the tensor after each of `total` pieces of work."""
    done = 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        show(done, total, name)

    if progress is not None:
        show = progress
        yield advance
        return
    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("finite differences", total=total)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield advance
