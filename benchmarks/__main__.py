"""`python -m benchmarks`: gradients on stock ONNX Runtime against the forward pass and against peers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

import onnx_grad
from benchmarks import transforming
from benchmarks.measuring import Spread, alternate, clock_for, median_seconds, ratios
from benchmarks.memory import peak_megabytes
from benchmarks.networks import EXTRA, NETWORKS, Network
from benchmarks.report import FORWARD, OURS, TORCH, Measurement, Report, Transformation, machine, plot
from benchmarks.sides import AbsentPeerError, Side, Task, forward, onnx_ad, onnxsim, ort_training, ours, torch

WRT = ("weights", "input")
PEERS = (TORCH, "onnx-ad", "onnxsim", "onnxruntime-training")

EXAMPLES = """\b
python -m benchmarks                                  all networks, in two minutes or so
python -m benchmarks -n mlp -n cnn -t 1 -p PyTorch    two networks, one thread, one peer
python -m benchmarks -r 21 --memory --transforming --plot benchmarks.png --json benchmarks.json
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None)
progress = Console(stderr=True)


@app.command(epilog=EXAMPLES)
def main(
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            "-n",
            help=f"Which networks: {', '.join(n.name for n in (*NETWORKS, *EXTRA))}. Default: the first 5.",
        ),
    ] = None,
    wrt: Annotated[
        list[str] | None, typer.Option("--wrt", help="Gradients of what: weights, input. Default: both.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", "-t", help="Threads of each side. Default: 1 and 2.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            "-p",
            help=f"Which peers: {', '.join(PEERS)}, or none. Default: all but onnxsim, which is slow.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=2, help="Samples of each side.")] = 5,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Export with a symbol as batch size.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory too, each side in a process of its own.")
    ] = False,
    transforming_too: Annotated[
        bool,
        typer.Option(
            "--transforming", help="Also what transforming costs: `python -m benchmarks.transforming`."
        ),
    ] = False,
    ort_training_python: Annotated[
        Path | None,
        typer.Option(
            envvar="ORT_TRAINING_PYTHON",
            help="The Python of a virtual environment with onnxruntime-training 1.19.2 and onnx.",
        ),
    ] = None,
    plot_to: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Draw the ratios (needs matplotlib).")
    ] = None,
    json_to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
) -> None:
    """Measure gradient steps, alternating in one process, and print ratios; smaller is better.

    One thread is measured in CPU time, several in wall time, so leave the machine alone. "forward" is the
    forward pass on stock ONNX Runtime. Weights are graph inputs where they are differentiated, and constants
    where the input is. Peers that are not installed are left out.
    """
    networks = _chosen("--network", network, {n.name: n for n in (*NETWORKS, *EXTRA)}, NETWORKS)
    tasks = [
        Task(n, w, t, dynamic_batch)
        for t in threads or (1, 2)
        for w in _chosen("--wrt", wrt, dict.fromkeys(WRT), WRT)
        for n in networks
    ]
    peers = (
        []
        if peer == ["none"]
        else _chosen("--peer", peer, dict.fromkeys(PEERS), [p for p in PEERS if p != "onnxsim"])
    )
    sides = _sides(peers, ort_training_python)
    report = Report()
    console = Console(width=140)
    console.print(machine())
    with progress.status("…") as status:
        for i, task in enumerate(tasks):
            status.update(
                f"{i + 1} of {len(tasks)}: {task.network.title}, {task.wrt}, {task.threads} threads"
            )
            report.measurements += _measured(task, sides, rounds, memory and task.threads == 1)
        report.transformations = [_transformed(n) for n in networks]
    for table in report.tables():
        console.print(table)
    if transforming_too:
        transforming.main()
    if plot_to is not None:
        plot(report, plot_to)
    if json_to is not None:
        json_to.write_text(json.dumps(report.as_json(), indent=1))


def _chosen(option: str, names: Sequence[str] | None, known: dict, default: Sequence) -> list:  # type: ignore[type-arg]
    """The values of the names that were given; the default where there are none."""
    if not names:
        return list(default)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"'{name}' is none of: {', '.join(known)}", param_hint=option)
    return [name if known[name] is None else known[name] for name in names]


def _sides(peers: Sequence[str], python: Path | None) -> dict[str, Callable[[Task], Side]]:
    offered: dict[str, Callable[[Task], Side]] = {TORCH: torch, "onnx-ad": onnx_ad, "onnxsim": onnxsim}
    if python is not None:
        offered["onnxruntime-training"] = ort_training(python)
    return {FORWARD: forward, OURS: ours, **{name: offered[name] for name in peers if name in offered}}


def _measured(
    task: Task, makers: dict[str, Callable[[Task], Side]], rounds: int, memory: bool
) -> list[Measurement]:
    rows = {name: Measurement(task.network.title, task.wrt, task.threads, name) for name in makers}
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, make in makers.items():
            try:
                sides[name] = make(task)
            except AbsentPeerError as absent:
                rows[name].note = str(absent)
                continue
            stack.callback(sides[name].close)
        _compare_results(sides, rows)
        samples = alternate(sides, rounds, clock_for(task.threads))
    for name, seconds in samples.items():
        row = rows[name]
        row.milliseconds = Spread.of([1e3 * s for s in seconds])
        row.to_forward = ratios(samples, name, FORWARD)
        row.to_torch = ratios(samples, name, TORCH) if TORCH in samples else None
        row.megabytes = peak_megabytes(task.network.name, task.wrt, name) if memory else None
    return list(rows.values())


def _compare_results(sides: dict[str, Side], rows: dict[str, Measurement]) -> None:
    """Whether all sides compute the same gradients."""
    own = np.concatenate([array.ravel() for array in sides[OURS].results()])
    for name, side in sides.items():
        results = [np.ravel(array) for array in side.results()]
        if results and name != OURS:
            distance = np.linalg.norm(np.concatenate(results) - own) / np.linalg.norm(own)
            rows[name].difference = float(distance)


def _transformed(network: Network) -> Transformation:
    model, names = network.onnx(weights_are_inputs=True), list(network.weights())
    added = len(onnx_grad.vjp(model, names).graph.node) - len(model.graph.node)
    seconds = median_seconds(partial(onnx_grad.vjp, model, names), 5)
    return Transformation(network.title, len(model.graph.node), added, seconds * 1e3)


if __name__ == "__main__":
    app()
