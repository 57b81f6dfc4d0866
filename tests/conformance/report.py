"""What became of all the cases: a line per operator and a total, what is not right, and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import rich.box
import rich.console
import rich.table
from rich.text import Text

from tests.conformance.judging import IN_FLOAT32, Outcome, Verdict

LISTED = (Outcome.WRONG, Outcome.REFUSED, Outcome.UNEVALUABLE)


def show(verdicts: Sequence[Verdict], console: rich.console.Console) -> None:
    """Print a line per operator, a total, and every case that is not right with its reason."""
    console.print(_table(verdicts))
    for outcome in LISTED:
        for verdict in verdicts:
            if verdict.outcome is outcome:
                console.print(Text(f"{outcome}: {verdict.case} ({verdict.operator}): {verdict.reason}"))
    outside = sorted({verdict.operator for verdict in verdicts if verdict.outcome is Outcome.OUT_OF_SCOPE})
    if outside:
        console.print(Text(f"{Outcome.OUT_OF_SCOPE}: {', '.join(outside)}"))
    judged = [v for v in verdicts if v.outcome in (Outcome.RIGHT, *LISTED)]
    counts = _counts(judged)
    right, wrong = counts[Outcome.RIGHT], counts[Outcome.WRONG]
    rounded = sum(verdict.reason == IN_FLOAT32 for verdict in judged)
    share = f" ({right / len(judged):.1%})" if judged else ""
    seconds = sum(verdict.seconds for verdict in verdicts)
    console.print(
        f"{right} of {len(judged)} differentiable cases are right{share}, "
        f"{rounded} of them compared in float32 only; {wrong} are wrong. {seconds:.0f} s."
    )


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


def _table(verdicts: Sequence[Verdict]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_footer=True)
    total = _counts(verdicts)
    table.add_column("operator", footer="total")
    table.add_column("cases", footer=str(len(verdicts)), justify="right")
    for outcome in Outcome:
        table.add_column(outcome, footer=str(total[outcome] or ""), justify="right")
    for operator, group in sorted(_by_operator(verdicts).items()):
        counts = _counts(group)
        cells = (str(counts[outcome] or "") for outcome in Outcome)
        table.add_row(operator, str(len(group)), *cells, style="bold" if counts[Outcome.WRONG] else None)
    return table


def _by_operator(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.operator].append(verdict)
    return groups


def _counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    found = Counter(verdict.outcome for verdict in verdicts)
    return {str(outcome): found[outcome] for outcome in Outcome}
