"""The command `python -m tests.conformance`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.conformance.cases import Case, fast_subset, load_cases
from tests.conformance.judging import Outcome, Verdict, judge
from tests.conformance.report import lost, show, to_json

WIDTH = 110


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 when a gradient is wrong, or not right any more where the baseline is."""
    options = _parser().parse_args(arguments)
    cases = load_cases(options.only)
    if options.fast:
        cases = fast_subset(cases)
    if not cases:
        print(f"no case matches '{options.only}'", file=sys.stderr)
        return 2
    one = functools.partial(judge, erase_shapes=options.erase_shapes, time_limit=options.time_limit)
    verdicts = list(_with_progress(_verdicts(one, cases, options.jobs), len(cases)))
    if options.json:
        print(to_json(verdicts))
    else:
        show(verdicts, Console(width=WIDTH, soft_wrap=True))
    gone = lost(verdicts, options.baseline.read_text()) if options.baseline else []
    if gone:
        print(f"right in {options.baseline} and not here: {', '.join(gone)}", file=sys.stderr)
    return 1 if gone or any(verdict.outcome is Outcome.WRONG for verdict in verdicts) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Compare the gradients of ONNX's own backend cases with finite differences in float64.",
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases or operators that match")
    parser.add_argument("--fast", action="store_true", help="the two cheapest cases of every operator")
    parser.add_argument("--erase-shapes", action="store_true", help="take all shapes from the models first")
    parser.add_argument("--json", action="store_true", help="print every verdict as JSON")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="fail when worse than this JSON")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--time-limit", type=float, default=30.0, metavar="S", help="seconds for each case")
    return parser


def _verdicts(one: Callable[[Case], Verdict], cases: Sequence[Case], jobs: int) -> Iterator[Verdict]:
    if jobs == 1:
        yield from map(one, cases)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, cases, chunksize=4)


def _with_progress(verdicts: Iterable[Verdict], total: int) -> Iterator[Verdict]:
    """The same, with a bar on stderr when that is a terminal."""
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        )
        task = bar.add_task("cases", total=total)
        for verdict in verdicts:
            bar.update(task, advance=1, description=verdict.case)
            yield verdict


if __name__ == "__main__":
    sys.exit(main())
