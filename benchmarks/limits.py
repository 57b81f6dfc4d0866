"""What was aimed at, what is measured, and two floors, below which other formulas can hardly bring it.

`python -m benchmarks.limits` prints a line for every aim of time: gradients of weights against PyTorch and
the forward pass, input gradients and tangents against the forward pass. The floors are sums of what ONNX
Runtime's profiles show, as multiples of the same reference:

- seed: the forward pass as it is optimised when it runs alone, and what depends on the cotangent or tangent.
  Masks, derivatives of activations, positions of maxima and windows of the input are for nothing.
- products: products and convolutions of both, the other kernels of that forward pass, and one multiplication
  for each nonlinear operator. All else is for nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import typer
from rich.console import Console
from rich.table import Table

import onnx_grad
from benchmarks import derivatives, light
from benchmarks.layers import OPSET, Array
from benchmarks.measuring import alternate, clock_for, ratios
from benchmarks.networks import EXTRA, NETWORKS, Network
from benchmarks.sides import Session, Side, Task, torch
from models.light import image_name, load, weight_names

# With what ONNX Runtime makes of them.
PRODUCTS = frozenset("Conv ConvTranspose FusedConv FusedGemm FusedMatMul Gemm MatMul".split())
# Through which a cotangent or a tangent cannot pass without being multiplied by something of its size.
NONLINEAR = frozenset("Erf Gelu LayerNormalization MaxPool Relu Sigmoid Softmax Tanh".split())

# For 2 threads and for 1, against PyTorch.
TO_PYTORCH = {
    "mlp": (0.80, 0.85),
    "cnn": (1.1, 0.80),
    "resnet18": (1.25, 1.0),
    "encoder": (0.92, 0.90),
    "depthwise": (1.5, 1.3),
}
# Against the forward pass.
WEIGHTS = {"mlp": 3.1, "cnn": 4.5, "resnet18": 4.0, "encoder": 3.3}
INPUT = {"convstack": 2.6, "encoder": 2.3}
LIGHT = 4.5
TANGENTS = 2.5


@dataclass(frozen=True)
class Aim:
    """Something that was aimed at.

    Attributes:
        derivative: What is measured.
        network: Of which network.
        reference: `"PyTorch"` or `"forward"`.
        ratio: The time that it may take, as a multiple of the reference's.
        model: The graph of the derivative.
        forward: The forward model.
        feeds: Inputs for both.
        task: For which it is; it says how many threads there are.
    """

    derivative: str
    network: str
    reference: str
    ratio: float
    model: onnx.ModelProto
    forward: onnx.ModelProto
    feeds: Mapping[str, Array]
    task: Task

    def sides(self) -> dict[str, Side]:
        """The derivative and its reference."""
        reference = torch(self.task) if self.reference == "PyTorch" else self._session(self.forward)
        return {"derivative": self._session(self.model), "reference": reference}

    def _session(self, model: onnx.ModelProto) -> Side:
        return Session(model, dict(self.feeds), [], self.task)


def aims(threads: int, beginnings: Sequence[str] = ("",)) -> Iterator[Aim]:
    """Those for so many threads, of networks whose names begin with one of `beginnings`."""

    def some(networks: Iterable[Network]) -> list[Network]:
        return [network for network in networks if network.name.startswith(tuple(beginnings))]

    for network in some(NETWORKS):
        yield _of_gradient(network, "weights", "PyTorch", TO_PYTORCH[network.name][threads == 1], threads)
    for network in some(NETWORKS):
        if network.name in WEIGHTS:
            yield _of_gradient(network, "weights", "forward", WEIGHTS[network.name], threads)
    for network in some((*EXTRA, *NETWORKS)):
        if network.name in INPUT:
            yield _of_gradient(network, "input", "forward", INPUT[network.name], threads)
    task = Task(NETWORKS[0], "input", threads)
    for name in light.NAMES:
        if name.startswith(tuple(beginnings)):
            forward = load(name)
            model = onnx_grad.vjp(forward, [image_name(forward), *weight_names(forward)])
            yield Aim("image and weights", name, "forward", LIGHT, model, forward, light.feeds(model), task)
    for name, shapes in derivatives.SHAPES.items():
        if name.startswith(tuple(beginnings)):
            yield _of_tangents(name, derivatives.load(name), shapes, task)
    for network in some(NETWORKS):
        yield _of_tangents(f"{network.name}, larger", network.onnx(False), {"x": network.shape}, task)


def _of_gradient(network: Network, wrt: str, reference: str, ratio: float, threads: int) -> Aim:
    task = Task(network, wrt, threads)
    feeds = {**task.feeds(), "y_grad": task.cotangent()}
    model = onnx_grad.vjp(task.model(), task.names())
    return Aim(wrt, network.name, reference, ratio, model, task.model(), feeds, task)


def _of_tangents(name: str, forward: onnx.ModelProto, shapes: derivatives.Shapes, task: Task) -> Aim:
    model = onnx_grad.jvp(forward)
    tangents = derivatives.renamed(model, "tangents", derivatives.arrays(shapes, 1))
    feeds = {**derivatives.arrays(shapes, 0), **tangents}
    return Aim("tangents", name, "forward", TANGENTS, model, forward, feeds, task)


@dataclass(frozen=True)
class Profile:
    """The kernels of one run.

    Attributes:
        seconds: The time of each, by its node's name.
        operators: Its operator.
        graph: The optimised graph whose nodes they are.
    """

    seconds: Mapping[str, float]
    operators: Mapping[str, str]
    graph: onnx.GraphProto

    @property
    def total(self) -> float:
        """The time of all kernels."""
        return sum(self.seconds.values())

    @property
    def products(self) -> float:
        """The time of products and convolutions."""
        return sum(time for name, time in self.seconds.items() if self.operators[name] in PRODUCTS)

    def depending_on(self, names: Iterable[str]) -> float:
        """The time of what depends on the values of those names."""
        reached, seconds = set(names), 0.0
        for node in self.graph.node:
            if not reached.isdisjoint(node.input):
                reached.update(node.output)
                seconds += self.seconds.get(node.name, 0.0)
        return seconds


def profile(model: onnx.ModelProto, feeds: Mapping[str, Array], threads: int, steps: int) -> Profile:
    """The medians over some runs, as ONNX Runtime profiles them."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A warning that the optimised graph is for this machine only.
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        wanted = {value.name for value in session.get_inputs()}
        for _ in range(steps):
            session.run(None, {name: array for name, array in feeds.items() if name in wanted})
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = onnx.load(options.optimized_model_filepath).graph
    samples: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            samples.setdefault(name, []).append(event["dur"])
            operators[name] = event["args"]["op_name"]
    seconds = {name: float(np.median(durations)) * 1e-6 for name, durations in samples.items()}
    return Profile(seconds, operators, graph)


def floors(aim: Aim, steps: int) -> tuple[float, float]:
    """The two floors of a derivative, as shares of the time that it takes."""
    threads = aim.task.threads
    whole, forward = (profile(model, aim.feeds, threads, steps) for model in (aim.model, aim.forward))
    inputs = {value.name for value in aim.forward.graph.input}
    seeds = [value.name for value in aim.model.graph.input if value.name not in inputs]
    seed = forward.total + whole.depending_on(seeds)
    products = whole.products + forward.total - forward.products + _multiplications(aim, steps)
    return seed / whole.total, products / whole.total


def _multiplications(aim: Aim, steps: int) -> float:
    """The time of one multiplication for each nonlinear operator of the forward model."""
    shapes = list(_nonlinear_shapes(aim))
    if not shapes:
        return 0.0
    tensor, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Mul", [f"a{i}", f"b{i}"], [f"y{i}"], name=f"{i}") for i in range(len(shapes))
    ]
    inputs = [tensor(f"{kind}{i}", number, shape) for kind in "ab" for i, shape in enumerate(shapes)]
    outputs = [tensor(f"y{i}", number, shape) for i, shape in enumerate(shapes)]
    graph = onnx.helper.make_graph(nodes, "multiplications", inputs, outputs)
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    feeds = {f"{kind}{i}": np.ones(shape, np.float32) for kind in "ab" for i, shape in enumerate(shapes)}
    return profile(model, feeds, aim.task.threads, steps).total


def _nonlinear_shapes(aim: Aim) -> Iterator[tuple[int, ...]]:
    """The shapes of what nonlinear operators of the forward model give."""
    names = [node.output[0] for node in aim.forward.graph.node if node.op_type in NONLINEAR]
    model = onnx.ModelProto()
    model.CopyFrom(aim.forward)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    if names:
        outputs = Session(model, dict(aim.feeds), names, aim.task).results()
        yield from (array.shape for array in outputs)


def row(aim: Aim, rounds: int) -> list[str]:
    """One line of the table."""
    threads = aim.task.threads
    measured = ratios(alternate(aim.sides(), rounds, clock_for(threads)), "derivative", "reference").median
    seed, products = (share * measured for share in floors(aim, steps=max(rounds, 5)))
    verdict = (
        "met" if measured <= aim.ratio else "floor above" if max(seed, products) > aim.ratio else "missed"
    )
    numbers = (aim.ratio, measured, seed, products)
    return [aim.derivative, aim.network, aim.reference, *(f"{n:.2f}" for n in numbers), verdict]


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    threads: Annotated[
        list[int] | None, typer.Option("--threads", "-t", min=1, help="Threads. Default: 2, then 1.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=2, help="Samples of each side.")] = 9,
    only: Annotated[
        list[str] | None, typer.Option("--network", "-n", help="Only networks whose name begins so.")
    ] = None,
) -> None:
    """Compare what is measured with what was aimed at, and with the floor of it; smaller is better.

    One thread is measured in CPU time, several in wall time, so leave the machine alone.
    """
    for count in threads or [2, 1]:
        table = Table(title=f"Aims, {count} thread{'s' * (count > 1)}")
        for column in ("derivative", "network", "against"):
            table.add_column(column, no_wrap=True)
        for column in ("aim", "measured", "floor: seed", "floor: products"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for aim in aims(count, only or ("",)):
            table.add_row(*row(aim, rounds))
        Console(width=130).print(table)


if __name__ == "__main__":
    app()
