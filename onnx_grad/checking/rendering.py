"""A report for people: a verdict, a table by tensor, the worst point, and what it all rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_grad.checking.finite_differences import Point
from onnx_grad.checking.report import GradientReport, OwnPrecision, Probe, TensorReport

MOST_LISTED = 5


def rendered(report: GradientReport) -> Group:
    """The report as a rich renderable."""
    return Group(*_parts(report))


def _parts(report: GradientReport) -> Iterator[RenderableType]:
    yield _headline(report)
    yield _table(report)
    yield from map(_worst, _worst_first(report))
    yield from _failures(report)
    yield from _exceptions(report)
    yield from _inconclusive(report)
    yield from _noise(report)
    if report.problem:
        yield Text(report.problem, style="red")
    yield Text()
    for note in report.evaluators:
        yield Text.assemble((f"{note.role}: ", "bold"), f"{note.evaluator}, {note.precision}")
        if note.reason:
            yield Text(f"  because {note.reason}", style="dim")
        if note.caveat:
            yield Text(f"  but {note.caveat}", style="yellow")
    inputs = ", ".join(f"{name} {kind}" for name, kind in report.inputs.items())
    yield Text(
        f"checked at: {inputs or 'no inputs'}; seed {report.seed}; {report.seconds:.1f} s", style="dim"
    )


def _headline(report: GradientReport) -> Text:
    count = sum(1 for tensor in report.tensors if not tensor.passed)
    if report.passed:
        verdict, detail = ("PASS", "bold green"), "every gradient agrees with finite differences"
        noisy = sum(1 for tensor in report.tensors if tensor.ill_conditioned)
        if noisy:
            detail += f" as far as rounding allows ({noisy} of {len(report.tensors)} ill-conditioned here)"
    elif count:
        verdict = ("FAIL", "bold red")
        detail = f"{count} of {len(report.tensors)} gradients do not agree with finite differences"
    else:
        verdict, detail = ("FAIL", "bold red"), "the gradient graph does not run"
    return Text.assemble(verdict, f"  {report.model}: {detail}")


def _table(report: GradientReport) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("gradient of", overflow="fold")
    for heading in ("shape", "checked"):
        table.add_column(heading, no_wrap=True)
    for heading in ("error", "relative", "shipped", *(("kinks",) if report.kinks else ())):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for tensor in report.tensors:
        table.add_row(
            tensor.name,
            "×".join(map(str, tensor.shape)) or "scalar",
            _checked(tensor),
            _number(tensor.max_abs_error),
            _number(tensor.max_rel_error),
            _as_shipped(tensor),
            *([str(len(tensor.exceptions) or "")] if report.kinks else []),
            Text(tensor.verdict, style=_style(tensor)),
        )
    return table


def _style(tensor: TensorReport) -> str:
    if not tensor.passed:
        return "bold red"
    return "yellow" if tensor.ill_conditioned else "green"


def _checked(tensor: TensorReport) -> str:
    if tensor.coordinates:
        return "all"
    return f"{tensor.directions} lines" if tensor.directions else "nothing"


def _as_shipped(tensor: TensorReport) -> str:
    own = tensor.own_precision
    return "not run" if own is None else _number(own.max_rel_error)


def _worst_first(report: GradientReport) -> list[TensorReport]:
    """The tensor whose worst point comes closest to its tolerance, or is furthest beyond."""
    return sorted(
        (tensor for tensor in report.tensors if tensor.worst is not None),
        key=lambda tensor: tensor.worst.excess if tensor.worst is not None else 0.0,
        reverse=True,
    )[:1]


def _worst(tensor: TensorReport) -> Text:
    assert tensor.worst is not None
    return Text(f"worst: {tensor.name} {_compared(tensor.worst)}")


def _failures(report: GradientReport) -> Iterator[Text]:
    texts = [
        f"fails{' (unresolved)' if probe.point is Point.UNRESOLVED else ''}: {tensor.name} {_compared(probe)}"
        for tensor in report.tensors
        for probe in tensor.failures
    ]
    texts += [f"fails: {t.name}: {t.problem}" for t in report.tensors if t.problem]
    for tensor in report.tensors:
        own = tensor.own_precision
        if own is not None and not own.passed:
            texts.append(
                f"fails as shipped: {tensor.name} {own.where}: {own.gradient:.9g} in {own.dtype}, "
                f"{own.reference:.9g} in higher precision (tolerance {own.tolerance:.1g})"
                + ("; the point has kinks, where rounding decides" if tensor.exceptions else "")
            )
    yield from _first(texts, "red")


def _exceptions(report: GradientReport) -> Iterator[Text]:
    texts = [
        f"{probe.point.value}: {name} {probe.where}: {_side(probe.left)} from the left, "
        f"{_side(probe.right)} from the right; the gradient graph gives {probe.gradient:.6g}"
        for name, probe in report.kinks
    ]
    yield from _first(texts, "yellow")


def _inconclusive(report: GradientReport) -> Iterator[Text]:
    texts = [
        f"inconclusive: {tensor.name} {_compared(probe)}"
        for tensor in report.tensors
        for probe in tensor.inconclusive
    ]
    yield from _first(texts, "yellow")


def _noise(report: GradientReport) -> Iterator[Text]:
    """The gradients that agree only because rounding changes them as much."""
    inputs = "the last digit of the inputs changes this gradient by"
    values = "the last digit of the inputs, or of what the model computes, changes this gradient by"
    texts = []
    for tensor in report.tensors:
        if tensor.noise and tensor.ill_conditioned:
            texts.append(
                f"ill-conditioned: {tensor.name}: {inputs} up to {tensor.noise:.2g} along the lines checked, "
                "in the precision of the check itself: finite differences confirm it only within that"
            )
        own = tensor.own_precision
        if own is not None and own.ill_conditioned:
            texts.append(
                f"ill-conditioned: {tensor.name}: {values} {own.noise:.2g} in {own.dtype}, {_beside(own)}; "
                f"as shipped {own.gradient:.3g}, in higher precision {own.reference:.3g} at {own.where}"
            )
    yield from _first(texts, "yellow")


def _beside(own: OwnPrecision) -> str:
    """How large the noise is beside the gradient."""
    if own.noise >= own.largest:
        return f"which is all there is: its largest element is {own.largest:.2g}"
    return f"{own.noise / own.largest:.1g} of its largest element"


def _first(texts: list[str], style: str) -> Iterator[Text]:
    for text in texts[:MOST_LISTED]:
        yield Text(text, style=style)
    if len(texts) > MOST_LISTED:
        yield Text(f"… and {len(texts) - MOST_LISTED} more", style=style)


def _compared(probe: Probe) -> str:
    return (
        f"{probe.where}: gradient {probe.gradient:.9g}, finite difference {probe.difference:.9g} "
        f"± {probe.error:.1g} (tolerance {probe.tolerance:.1g})"
    )


def _side(value: float) -> str:
    # Adding zero turns a negative zero into a positive one.
    return "nothing" if math.isnan(value) else f"{value + 0.0:.6g}"


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"
