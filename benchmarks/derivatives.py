"""What derivatives cost: jvp, hvp, Jacobian and Hessian against what each is compared with.

`python -m benchmarks.derivatives` runs both sides of each comparison alternately in one process, on stock
ONNX Runtime, and prints their times and the ratios.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import typer
from rich.console import Console
from rich.table import Table

import onnx_grad
from benchmarks.measuring import Spread, alternate, clock_for, ratios
from benchmarks.networks import NETWORKS, Network
from benchmarks.sides import Side
from models import FOLDER

Array = npt.NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]

SHAPES: Mapping[str, Shapes] = {
    "digits_mlp": {"pixels": (64, 64)},
    "digits_cnn": {"image": (64, 1, 8, 8)},
    "encoder": {"embeddings": (8, 64, 32)},
    "energy": {"positions": (64, 3)},
    "cartpole": {"state": (256, 4), "force": (256, 1)},
}


class Runs(Side):
    """A model run once for each of several sets of inputs, one after the other."""

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[Mapping[str, Array]], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Otherwise its threads go on spinning, which whoever is measured next pays for.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._bindings = []
        for arrays in inputs:
            binding = self._session.io_binding()
            for name, array in arrays.items():
                binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            self._bindings.append(binding)

    def step(self) -> None:
        for binding in self._bindings:
            for name in self._outputs:
                binding.bind_output(name)
            self._session.run_with_iobinding(binding)

    def outputs(self, name: str) -> list[Array]:
        """The output `name` of each run."""
        self.step()
        place = self._outputs.index(name)
        return [binding.get_outputs()[place].numpy() for binding in self._bindings]


@dataclass(frozen=True)
class Comparison:
    """A derivative and what it is measured against.

    Attributes:
        title: What is compared.
        network: The file in `models/`, or the name of a network of `benchmarks.networks`.
        shapes: The shapes of its inputs.
        derivative: The side that is measured.
        reference: The side that it is measured against.
    """

    title: str
    network: str
    shapes: Shapes
    derivative: Runs
    reference: Runs


def jvp(network: str, threads: int) -> Comparison:
    """The tangents of all outputs, with the outputs, against the forward pass."""
    return _jvp(network, load(network), SHAPES[network], threads)


def jvp_of_larger(network: Network, threads: int) -> Comparison:
    """The same for one of the networks whose gradients `python -m benchmarks` measures."""
    forward = network.onnx(weights_are_inputs=False)
    return _jvp(f"{network.name}, larger", forward, {"x": network.shape}, threads)


def _jvp(name: str, forward: onnx.ModelProto, shapes: Shapes, threads: int) -> Comparison:
    x, tangent = arrays(shapes, 0), arrays(shapes, 1)
    model = onnx_grad.jvp(forward)
    derivative = Runs(model, [x | renamed(model, "tangents", tangent)], threads)
    return Comparison("jvp / forward", name, shapes, derivative, Runs(forward, [x], threads))


def hvp(network: str, of: str, threads: int) -> Comparison:
    """The Hessian-vector product against the gradient."""
    shapes, forward = SHAPES[network], load(network)
    x, tangent = arrays(shapes, 0), arrays(shapes, 1)
    model = onnx_grad.hvp(forward, of=of)
    derivative = Runs(model, [x | renamed(model, "tangents", tangent)], threads)
    reference = Runs(onnx_grad.grad(forward, of=of), [x], threads)
    return Comparison("hvp / gradient", network, shapes, derivative, reference)


def jacobian(threads: int) -> Comparison:
    """The Jacobian of ten logits by an image, against a vjp for each."""
    shapes, forward = {"image": (1, 1, 8, 8)}, load("digits_cnn")
    x, vjp = arrays(shapes, 0), onnx_grad.vjp(forward)
    rows = [renamed(vjp, "cotangents", {"logits": row[None]}) for row in np.eye(10, dtype=np.float32)]
    derivative = Runs(onnx_grad.jacobian(forward), [x], threads)
    reference = Runs(vjp, [x | row for row in rows], threads)
    return Comparison("Jacobian / 10 vjps", "digits_cnn", shapes, derivative, reference)


def hessian(particles: int, threads: int) -> Comparison:
    """The Hessian of the energy, against an hvp for each of its columns."""
    shapes, forward = {"positions": (particles, 3)}, load("energy")
    x, hvp = arrays(shapes, 0), onnx_grad.hvp(forward)
    basis = np.eye(3 * particles, dtype=np.float32).reshape(-1, particles, 3)
    columns = [renamed(hvp, "tangents", {"positions": column}) for column in basis]
    derivative = Runs(onnx_grad.hessian(forward), [x], threads)
    reference = Runs(hvp, [x | column for column in columns], threads)
    return Comparison(f"Hessian / {len(columns)} hvps", "energy", shapes, derivative, reference)


def comparisons(threads: int, larger: bool) -> list[Comparison]:
    """All of them; with the tangents of larger networks or not."""
    return [
        *(jvp(network, threads) for network in SHAPES),
        *(jvp_of_larger(network, threads) for network in NETWORKS if larger),
        hvp("energy", "energy", threads),
        hvp("cartpole", "cost", threads),
        jacobian(threads),
        hessian(8, threads),
        hessian(32, threads),
    ]


def load(network: str) -> onnx.ModelProto:
    """The model of that name in `models/`."""
    return onnx.load(FOLDER / f"{network}.onnx")


def arrays(shapes: Shapes, seed: int) -> dict[str, Array]:
    """Normally distributed arrays of those shapes."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def renamed(model: onnx.ModelProto, kind: str, directions: Mapping[str, Array]) -> dict[str, Array]:
    """Cotangents or tangents by the names that `model` has noted for its inputs."""
    (noted,) = [entry.value for entry in model.metadata_props if entry.key == f"pkg.onnx_grad.{kind}"]
    names: dict[str, str] = json.loads(noted)
    return {names[name]: array for name, array in directions.items()}


def measured(threads: int, rounds: int, larger: bool) -> Table:
    """One row for each comparison."""
    clock = "CPU time" if threads == 1 else "wall time"
    table = Table(
        title=f"Derivatives, {threads} thread{'s' * (threads > 1)} ({clock}); medians, quartiles of the ratio"
    )
    for column in ("compared", "model", "inputs"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "against ms", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for comparison in comparisons(threads, larger):
        sides = {"derivative": comparison.derivative, "reference": comparison.reference}
        samples = alternate(sides, rounds, clock_for(threads))
        derivative, reference = (1e3 * Spread.of(samples[side]).median for side in sides)
        ratio = ratios(samples, "derivative", "reference")
        table.add_row(
            comparison.title,
            comparison.network,
            ", ".join("×".join(map(str, shape)) for shape in comparison.shapes.values()),
            f"{derivative:.3f}",
            f"{reference:.3f}",
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        )
    return table


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    threads: Annotated[
        list[int] | None, typer.Option("--threads", "-t", min=1, help="Threads of each side. Default: 1.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=2, help="Samples of each side.")] = 9,
    larger: Annotated[
        bool, typer.Option(help="Also the tangents of the five networks of `python -m benchmarks`.")
    ] = True,
) -> None:
    """Measure derivatives, alternating in one process, and print ratios; smaller is better.

    One thread is measured in CPU time, several in wall time, so leave the machine alone. Everything computes
    the outputs of the model too.
    """
    console = Console(width=110)
    for count in threads or [1]:
        console.print(measured(count, rounds, larger))


if __name__ == "__main__":
    app()
