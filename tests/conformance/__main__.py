"""The command `python -m tests.conformance`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.conformance.cases import fast_subset, load_cases
from tests.conformance.report import WIDTH, lost, show, to_json
from tests.conformance.running import judge_all
from tests.conformance.verdicts import Outcome, Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 when a gradient is wrong, or not right any more where the baseline is."""
    options = _parser().parse_args(arguments)
    cases = load_cases(options.only)
    if options.fast:
        cases = fast_subset(cases)
    if not cases:
        print(f"no case matches '{options.only}'", file=sys.stderr)
        return 2
    judged = judge_all(
        cases, jobs=options.jobs, erase_shapes=options.erase_shapes, time_limit=options.time_limit
    )
    verdicts = list(_with_progress(judged, len(cases)))
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
        epilog="The exit code is 0 where no gradient is wrong and no case of the baseline is lost, else 1; "
        "2 where no case matches.",
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases or operators that match")
    parser.add_argument("--fast", action="store_true", help="the two cheapest cases of every operator")
    parser.add_argument("--erase-shapes", action="store_true", help="take all shapes from the models first")
    parser.add_argument("--json", action="store_true", help="print every verdict as JSON")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="fail when worse than this JSON")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--time-limit", type=float, default=30.0, metavar="S", help="seconds for each case")
    return parser


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
