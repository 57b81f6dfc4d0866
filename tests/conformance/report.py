"""What became of all the cases: a line per operator and a total, what is not right, and JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import rich.box
import rich.console
import rich.table
from rich.text import Text

from tests.conformance.judging import NOT_CONFIRMED
from tests.conformance.verdicts import DIFFERENTIABLE, Outcome, Precision, Verdict

WIDTH = 100
LONGEST_OPERATOR = 31

# What is told of the cases of an operator, and which of them that is.
_COLUMNS: dict[str, Callable[[Verdict], bool]] = {
    "cases": lambda _: True,
    "right in float64": lambda v: v.outcome is Outcome.RIGHT and v.precision is not Precision.FLOAT32,
    "right in float32": lambda v: v.outcome is Outcome.RIGHT and v.precision is Precision.FLOAT32,
    "wrong": lambda v: v.outcome is Outcome.WRONG,
    "refused": lambda v: v.outcome is Outcome.REFUSED,
    "un- evaluable": lambda v: v.outcome is Outcome.UNEVALUABLE,
    "no deri- vative": lambda v: v.outcome is Outcome.NOT_DIFFERENTIABLE,
    "out of scope": lambda v: v.outcome is Outcome.OUT_OF_SCOPE,
}


def show(verdicts: Sequence[Verdict], console: rich.console.Console) -> None:
    """Print a line per operator, every case there is something to say about, and a total."""
    console.print(_table(verdicts))
    for line in (*_remarks(verdicts), *_total(verdicts)):
        console.print(Text(line))


def to_json(verdicts: Sequence[Verdict]) -> str:
    """The verdicts, and how many there are of each outcome."""
    content = {
        "total": _counts(verdicts),
        "operators": {operator: _counts(group) for operator, group in _by_operator(verdicts).items()},
        "cases": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    return json.dumps(content, indent=2)


def lost(verdicts: Iterable[Verdict], baseline: str) -> list[str]:
    """The cases that were right in an earlier run, given as JSON, and are not any more."""
    before = {entry["case"] for entry in json.loads(baseline)["cases"] if entry["outcome"] == Outcome.RIGHT}
    return [v.case for v in verdicts if v.case in before and v.outcome is not Outcome.RIGHT]


def share_right(verdicts: Iterable[Verdict]) -> float:
    """How many of the differentiable cases are right, of 1."""
    outcomes = [verdict.outcome for verdict in verdicts if verdict.outcome in DIFFERENTIABLE]
    return outcomes.count(Outcome.RIGHT) / len(outcomes) if outcomes else 1.0


def _table(verdicts: Sequence[Verdict]) -> rich.table.Table:
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, show_footer=True, padding=(0, 1), collapse_padding=True, pad_edge=False
    )
    table.add_column("operator", footer="total", vertical="bottom", no_wrap=True, max_width=LONGEST_OPERATOR)
    for name, count in zip(_COLUMNS, _cells(verdicts), strict=True):
        width = max(map(len, (*name.split(), count)))
        table.add_column(name, footer=count, justify="right", vertical="bottom", width=width)
    for operator, group in sorted(_by_operator(verdicts).items()):
        wrong = any(verdict.outcome is Outcome.WRONG for verdict in group)
        table.add_row(operator, *_cells(group), style="bold" if wrong else None)
    return table


def _cells(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for belongs in _COLUMNS.values():
        yield str(sum(map(belongs, verdicts)) or "")


def _remarks(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Every reason with the cases it holds for, under the outcome they share."""
    sections = {str(outcome): [v for v in verdicts if v.outcome is outcome] for outcome in DIFFERENTIABLE}
    sections["no derivative, unconfirmed"] = [v for v in verdicts if v.reason == NOT_CONFIRMED]
    sections["right, with a remark"] = [v for v in sections.pop(str(Outcome.RIGHT)) if v.reason]
    for title, group in sections.items():
        if not group:
            continue
        yield f"{title}: {len(group)}"
        by_reason: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in group:
            by_reason[verdict.reason].append(verdict)
        for reason, those in by_reason.items():
            operators = ", ".join(sorted({verdict.operator for verdict in those}))
            yield from _wrapped(f"{operators}: {reason}", "  ")
            yield from _wrapped(", ".join(verdict.case for verdict in those), "      ")
        yield ""
    outside = sorted({verdict.operator for verdict in verdicts if verdict.outcome is Outcome.OUT_OF_SCOPE})
    if outside:
        yield from _wrapped(f"{Outcome.OUT_OF_SCOPE}: {', '.join(outside)}", "")
        yield ""


def _total(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """In words: how many there are of everything."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    precisions = Counter(v.precision for v in verdicts if v.outcome is Outcome.RIGHT)
    judged = sum(counts[outcome] for outcome in DIFFERENTIABLE)
    share = f" ({share_right(verdicts):.1%})" if judged else ""
    yield from _wrapped(
        f"{counts[Outcome.RIGHT]} of {judged} differentiable cases are right{share}: "
        f"{precisions[Precision.FLOAT64]} compared in float64, {precisions[Precision.FLOAT32]} in float32, "
        f"{precisions[Precision.NOTHING]} without an element to compare. "
        f"{counts[Outcome.WRONG]} are wrong, {counts[Outcome.REFUSED]} refused, "
        f"{counts[Outcome.UNEVALUABLE]} cannot be evaluated.",
        "",
    )
    yield from _wrapped(
        f"Besides, {counts[Outcome.NOT_DIFFERENTIABLE]} cases have no derivative, and "
        f"{counts[Outcome.OUT_OF_SCOPE]} are out of scope. "
        f"All took {sum(verdict.seconds for verdict in verdicts):.0f} s of work.",
        "",
    )


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def _by_operator(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.operator].append(verdict)
    return groups


def _counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    found = Counter(verdict.outcome for verdict in verdicts)
    return {str(outcome): found[outcome] for outcome in Outcome}
