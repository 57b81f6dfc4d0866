"""How much of a gradient step is products and convolutions: what no other formula around them can save.

`python -m benchmarks.shares` profiles the gradient graph of each network on one thread, and compares the
whole step, and its products and convolutions alone, with PyTorch's step.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer
from rich.console import Console
from rich.table import Table

import onnx_grad
from benchmarks.measuring import alternate, clock_for, ratios
from benchmarks.networks import NETWORKS, Network
from benchmarks.sides import Task, ours, torch

# With what ONNX Runtime makes of them.
PRODUCTS = frozenset("Conv ConvTranspose FusedConv FusedGemm FusedMatMul Gemm MatMul".split())


def kernel_seconds(task: Task, steps: int) -> Counter[str]:
    """The time that the kernels of each operator take in one gradient step, as ONNX Runtime profiles it."""
    names = task.names()
    model = onnx_grad.vjp(task.model(), names)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {**task.feeds(), "y_grad": task.cotangent()}
        wanted = {value.name for value in session.get_inputs()}
        for _ in range(steps):
            session.run(None, {name: array for name, array in feeds.items() if name in wanted})
        events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    seconds: Counter[str] = Counter()
    for (operator, _), samples in durations.items():
        seconds[operator] += float(np.median(samples)) * 1e-6
    return seconds


def row(network: Network, wrt: str, rounds: int) -> list[str]:
    """One line of the table."""
    task = Task(network, wrt, threads=1)
    seconds = kernel_seconds(task, steps=rounds)
    share = sum(seconds[operator] for operator in PRODUCTS) / seconds.total()
    step = ratios(
        alternate({"ours": ours(task), "torch": torch(task)}, rounds, clock_for(1)), "ours", "torch"
    )
    others = [(operator, time) for operator, time in seconds.most_common() if operator not in PRODUCTS][:3]
    named = ", ".join(f"{operator} {100 * time / seconds.total():.0f} %" for operator, time in others)
    alone = f"{share * step.median:.2f}"
    return [network.title, wrt, f"{100 * share:.0f} %", f"{step.median:.2f}", alone, named]


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=2, help="Samples of each side.")] = 9,
) -> None:
    """Profile the gradient step of each network, and compare with PyTorch's; one thread, CPU time."""
    table = Table(title="Products and convolutions in a gradient step, 1 thread")
    for column in ("network", "gradients of"):
        table.add_column(column, no_wrap=True)
    for column in ("share", "step / PyTorch", "they alone / PyTorch"):
        table.add_column(column, justify="right")
    table.add_column("the most of the rest")
    for wrt in ("weights", "input"):
        for network in NETWORKS:
            table.add_row(*row(network, wrt, rounds))
    Console(width=130).print(table)


if __name__ == "__main__":
    app()
