"""What recomputing saves and costs: `python -m benchmarks.recomputation`.

For the gradients of all weights of two networks: the peak of the memory of activations, measured and as
`onnx_grad.peak_memory` estimates it, and the time, with nothing recomputed, with a budget of half the memory,
and with `recompute="sqrt"`.

The peak is what one run adds to the resident memory of a process of its own. Weights, inputs, and the memory
that outputs are written to lie there before. ONNX Runtime's arena and memory pattern are off and freed memory
goes back at once, so that what is resident is what is in use; they keep freed memory, and would hide how much
that is. Times are taken with both on, as they are by default, alternately in one process, on one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

import onnx_grad
from benchmarks.measuring import alternate, clock_for, ratios
from benchmarks.memory import ENVIRONMENT, megabytes_of
from benchmarks.networks import EXTRA, NETWORKS, Network
from benchmarks.sides import Session, Task

ROUNDS = 15
NAMES = ("encoder", "deepmlp")
CHOICES = ("nothing", "half", "sqrt")


@dataclass(frozen=True)
class Peaks:
    """Megabytes that activations take at the peak, with memory reused by plan and without."""

    reused: float
    freed: float


def gradient(network: Network, choice: str) -> onnx.ModelProto:
    """The gradients of all weights, which are inputs, with what `choice` says recomputed."""
    model, names = network.onnx(weights_are_inputs=True), list(network.weights())
    if choice == "sqrt":
        return onnx_grad.vjp(model, names, recompute="sqrt")
    plain = onnx_grad.vjp(model, names)
    if choice == "nothing":
        return plain
    return onnx_grad.vjp(model, names, recompute=onnx_grad.peak_memory(plain).activations // 2)


def estimated(model: onnx.ModelProto) -> Peaks:
    """What the graph tells that ONNX Runtime makes of the model."""
    found = (onnx_grad.peak_memory(model, reuse=reuse, optimized=True).activations for reuse in (True, False))
    return Peaks(*(bytes_ / 2**20 for bytes_ in found))


def measured(network: str, choice: str) -> Peaks:
    """What is resident, in processes of their own."""
    return Peaks(*(measured_once(network, choice, reuse) for reuse in (True, False)))


def measured_once(network: str, choice: str, reuse: bool) -> float:
    """What is resident, in a process of its own."""
    arguments = [network, choice, "reuse" if reuse else "free"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.recomputation", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        check=True,
    )
    return float(result.stdout)


def measure(network: Network, choice: str, reuse: bool) -> float:
    """The peak of one run in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.enable_mem_reuse = reuse
    step = bound(gradient(network, choice), Task(network, "weights", 1), options)
    step()
    return megabytes_of(step)


def bound(model: onnx.ModelProto, task: Task, options: Any) -> Callable[[], object]:
    """Runs a model with inputs and outputs where they lie already."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds = {**task.feeds(), "y_grad": task.cotangent()}
    shapes = {"y": feeds["y_grad"].shape, **{f"{name}_grad": feeds[name].shape for name in task.names()}}
    place = onnxruntime.OrtValue.ortvalue_from_numpy
    inputs = {name: place(array) for name, array in feeds.items()}
    outputs = {name: place(np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    # The values own the memory.
    return lambda: (session.run_with_iobinding(binding), inputs, outputs)


def table(network: Network) -> Table:
    """All figures of a network."""
    result = Table("recomputed", title=network.title)
    for column in ("measured MiB", "estimated", "measured, no reuse", "estimated", "nodes", "time"):
        result.add_column(column, justify="right")
    task = Task(network, "weights", 1)
    models = {choice: gradient(network, choice) for choice in CHOICES}
    feeds = {**task.feeds(), "y_grad": task.cotangent()}
    sides = {choice: Session(model, feeds, [], task) for choice, model in models.items()}
    samples = alternate(sides, ROUNDS, clock_for(1))
    for choice, model in models.items():
        real, told = measured(network.name, choice), estimated(model)
        time = ratios(samples, choice, "nothing")
        result.add_row(
            choice,
            *(f"{megabytes:.1f}" for megabytes in (real.reused, told.reused, real.freed, told.freed)),
            str(len(model.graph.node)),
            f"{time.median:.2f} ({time.low:.2f} to {time.high:.2f})",
        )
    return result


def main() -> None:
    """Print a table for each network; with a network, a choice and `reuse` or `free`, measure one peak."""
    networks = {network.name: network for network in (*NETWORKS, *EXTRA)}
    if len(sys.argv) not in (1, 4):
        print(__doc__)
        return
    if len(sys.argv) == 4:
        name, choice, reuse = sys.argv[1:]
        print(measure(networks[name], choice, reuse == "reuse"))
        return
    console = Console(width=110)
    for name in NAMES:
        console.print(table(networks[name]))


if __name__ == "__main__":
    main()
