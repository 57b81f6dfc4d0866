"""What transforming costs: against the time ONNX Runtime takes to load the result, and per node.

`python -m benchmarks.transforming` prints three tables.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import onnx.helper
import onnxruntime
from rich.console import Console
from rich.table import Table

import onnx_grad
from benchmarks.memory import kilobytes
from models import light

REPETITIONS = 5
CHAIN_LENGTHS = (1_000, 2_000, 5_000, 10_000, 20_000)
CHAIN = ("Mul", "Add", "Sub")
LARGE_LAYERS, LARGE_WIDTH = 34, 4096


def alternate(*actions: Callable[[], object]) -> list[list[float]]:
    """The seconds each action takes, the actions one after the other, `REPETITIONS` times."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(REPETITIONS):
        for action, times in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
    return seconds


def chain(length: int) -> onnx.ModelProto:
    """A model of `length` elementwise nodes, one after the other, with a weight for every second one."""
    nodes, weights, value = [], [], "x"
    for i in range(length):
        op_type = CHAIN[i % len(CHAIN)]
        inputs = [value]
        if op_type != "Tanh":
            inputs.append(f"w{i}")
            weights.append(onnx.helper.make_tensor(f"w{i}", onnx.TensorProto.FLOAT, [8], [0.5] * 8))
        value = f"h{i}"
        nodes.append(onnx.helper.make_node(op_type, inputs, [value]))
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["batch", 8])],
        weights,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def load(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Let ONNX Runtime load `model`, with its own default optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def against_loading() -> Table:
    """Each light architecture, gradients of its image and of all its weights."""
    table = Table("network", title="Transforming against loading the result")
    for column in ("nodes", "result", "transform", "load", "ratio", "µs per added node"):
        table.add_column(column, justify="right")
    for name in light.NAMES:
        model = light.load(name)
        wrt = [light.image_name(model), *light.weight_names(model)]
        result = onnx_grad.vjp(model, wrt)
        transform, loading = alternate(partial(onnx_grad.vjp, model, wrt), partial(load, result))
        added = len(result.graph.node) - len(model.graph.node)
        table.add_row(
            name,
            str(len(model.graph.node)),
            str(len(result.graph.node)),
            f"{statistics.median(transform) * 1e3:.0f} ms",
            f"{statistics.median(loading) * 1e3:.0f} ms",
            f"{statistics.median(transform) / statistics.median(loading):.2f}",
            f"{statistics.median(transform) / added * 1e6:.0f}",
        )
    return table


def per_node() -> Table:
    """Chains of growing length, gradients of the input and of all weights."""
    table = Table("nodes", title="Transforming a chain")
    for column in ("added", "median", "µs per node", "µs per added node"):
        table.add_column(column, justify="right")
    for length in CHAIN_LENGTHS:
        model = chain(length)
        wrt = ["x", *(tensor.name for tensor in model.graph.initializer)]
        added = len(onnx_grad.vjp(model, wrt).graph.node) - length
        (seconds,) = alternate(partial(onnx_grad.vjp, model, wrt))
        median = statistics.median(seconds)
        table.add_row(
            f"{length:,}",
            f"{added:,}",
            f"{median:.2f} s",
            f"{median / length * 1e6:.0f}",
            f"{median / added * 1e6:.0f}",
        )
    return table


def save_large(folder: Path) -> Path:
    """A model with weights of more than 2 GB in a file of their own, which is sparse: all zeros."""
    size = LARGE_WIDTH * LARGE_WIDTH * 4
    nodes, weights = [], []
    for i in range(LARGE_LAYERS):
        nodes.append(onnx.helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"]))
        nodes.append(onnx.helper.make_node("Relu", [f"m{i}"], [f"h{i + 1}"]))
        weight = onnx.TensorProto(name=f"w{i}", data_type=onnx.TensorProto.FLOAT, dims=[LARGE_WIDTH] * 2)
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "large.data"), ("offset", i * size), ("length", size)):
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", LARGE_WIDTH])
        for name in ("h0", f"h{LARGE_LAYERS}")
    ]
    graph = onnx.helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    opset = onnx.helper.make_opsetid("", 20)
    path = folder / "large.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    with (folder / "large.data").open("wb") as data:
        data.truncate(LARGE_LAYERS * size)
    return path


def of_large() -> Table:
    """A file of more than 2 GB to a file, in a process of its own."""
    table = Table("model", title="Transforming a large model: a file to a file, gradients of all weights")
    for column in ("seconds", "memory of the process before", "at most"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        path = save_large(Path(folder))
        command = [sys.executable, "-m", "benchmarks.transforming", str(path)]
        figures = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        gigabytes = (path.parent / "large.data").stat().st_size / 1e9
    table.add_row(f"{gigabytes:.2f} GB", figures[0], f"{figures[1]} MB", f"{figures[2]} MB")
    return table


def transform_file(path: Path) -> None:
    """Print the seconds that a file takes, and the memory of this process in MB before and at most."""
    before = kilobytes("VmRSS")
    started = time.perf_counter()
    onnx_grad.vjp(path, "parameters", save_as=path.with_name("gradient.onnx"))
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} {before / 1024:.0f} {kilobytes('VmHWM') / 1024:.0f}")


def main() -> None:
    """Print all tables."""
    console = Console(width=110)
    console.print(per_node())
    console.print(of_large())
    console.print(against_loading())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        transform_file(Path(sys.argv[1]))
    else:
        main()
