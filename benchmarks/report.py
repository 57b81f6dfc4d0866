"""What was measured, as tables and as a plot."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
from rich.table import Table

from benchmarks.measuring import Spread

FORWARD, OURS, TORCH = "forward", "onnx_grad", "PyTorch"


@dataclass
class Measurement:
    """One side of one task.

    Attributes:
        network: The network's title.
        wrt: What was differentiated.
        threads: Threads of each side.
        side: The side's name.
        milliseconds: Time of a step.
        to_torch: Its ratio to PyTorch's step.
        to_forward: Its ratio to the forward pass on ONNX Runtime.
        difference: Relative distance of its gradients from this project's; `None` where it has none.
        megabytes: Peak memory of a step above what was resident; `None` where it was not measured.
        note: Why there is nothing.
    """

    network: str
    wrt: str
    threads: int
    side: str
    milliseconds: Spread | None = None
    to_torch: Spread | None = None
    to_forward: Spread | None = None
    difference: float | None = None
    megabytes: float | None = None
    note: str = ""


@dataclass
class Transformation:
    """What transforming a network took."""

    network: str
    nodes: int
    added: int
    milliseconds: float


@dataclass
class Report:
    """All measurements of one run."""

    measurements: list[Measurement] = field(default_factory=list)
    transformations: list[Transformation] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the machine."""
        return {"machine": machine(), **asdict(self)}

    def tables(self) -> Iterable[Table]:
        """One table for each kind of gradient and number of threads, and one of the transformations."""
        for wrt, threads in dict.fromkeys((m.wrt, m.threads) for m in self.measurements):
            rows = [m for m in self.measurements if (m.wrt, m.threads) == (wrt, threads)]
            yield _ratios(rows, wrt, threads)
        if self.transformations:
            yield _transformations(self.transformations)


def machine() -> str:
    """The processor, the cores, and the versions that matter."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0].strip() if names else model
    return f"{model}, {os.cpu_count()} cores; onnxruntime {onnxruntime.__version__}"


def _ratios(rows: Sequence[Measurement], wrt: str, threads: int) -> Table:
    clock = "CPU time" if threads == 1 else "wall time"
    what = "all weights" if wrt == "weights" else "the input"
    title = f"Gradient of {what}, {threads} thread{'s' * (threads > 1)} ({clock}); median \\[quartiles]"
    table = Table(title=title, caption=_caption(rows), caption_justify="left")
    for column in ("network", "side"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "/ PyTorch", "/ forward", "peak MB", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = ""
    for row in rows:
        name = row.network if row.network != previous else ""
        if name and previous:
            table.add_section()
        previous = row.network
        if row.milliseconds is None:
            table.add_row(name, row.side, *["–"] * 5)
            continue
        table.add_row(
            name,
            row.side,
            f"{row.milliseconds.median:.1f}",
            _spread(row.to_torch),
            _spread(row.to_forward),
            "" if row.megabytes is None else f"{row.megabytes:.1f}",
            "" if row.difference is None else f"{row.difference:.0e}",
        )
    return table


def _caption(rows: Sequence[Measurement]) -> str:
    """Why there are dashes."""
    return "\n".join(f"{row.network}: {row.note}" for row in rows if row.note)


def _spread(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def _transformations(rows: Sequence[Transformation]) -> Table:
    table = Table("network", title="Transforming, gradients of all weights")
    for column in ("forward nodes", "nodes with gradients", "ratio", "ms", "µs per added node"):
        table.add_column(column, justify="right")
    for row in rows:
        total = row.nodes + row.added
        per_node = f"{row.milliseconds / row.added * 1e3:.0f}"
        ratio = f"{total / row.nodes:.1f}"
        table.add_row(row.network, str(row.nodes), str(total), ratio, f"{row.milliseconds:.1f}", per_node)
    return table


def plot(report: Report, path: Path) -> None:
    """Bars of every side relative to PyTorch, or to the forward pass where PyTorch is not there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((m.wrt, m.threads) for m in report.measurements))
    to_torch = any(m.to_torch for m in report.measurements)
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 3.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for (wrt, threads), axis in zip(panels, axes[:, 0], strict=True):
        rows = [m for m in report.measurements if (m.wrt, m.threads) == (wrt, threads)]
        _bars(axis, rows, to_torch)
        what = "all weights" if wrt == "weights" else "the input"
        axis.set_title(f"gradient of {what}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=10)
        axis.set_ylabel("time / PyTorch eager" if to_torch else "time / forward pass")
    axes[0, 0].legend(fontsize=8, ncols=6, loc="upper left", frameon=False)
    figure.supxlabel(machine(), fontsize=8, color="0.4")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _bars(axis: Any, rows: Sequence[Measurement], to_torch: bool) -> None:
    networks = list(dict.fromkeys(row.network for row in rows))
    names = [s for s in dict.fromkeys(row.side for row in rows) if any(_ratio(r, to_torch) for r in rows)]
    width = 0.8 / len(names)
    for i, side in enumerate(names):
        for row in rows:
            ratio = _ratio(row, to_torch)
            if row.side == side and ratio is not None:
                place = networks.index(row.network) - 0.4 + (i + 0.5) * width
                error = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
                axis.bar(place, ratio.median, width * 0.92, color=f"C{i}", yerr=error, ecolor="0.3")
        axis.bar(0, 0, color=f"C{i}", label=side)
    axis.axhline(1.0, color="0.3", linewidth=0.8)
    axis.set_xticks(range(len(networks)), [name.split(",")[0] for name in networks], fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.25)


def _ratio(row: Measurement, to_torch: bool) -> Spread | None:
    return row.to_torch if to_torch else row.to_forward
