"""Networks that the `onnx` package ships: gradients of the image and of all weights against the forward pass.

`python -m benchmarks.light` prints nodes and times on one thread. The weights are constants.
"""

from __future__ import annotations

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import onnx_grad
from benchmarks.layers import Array
from benchmarks.measuring import alternate, clock_for, ratios
from benchmarks.networks import NETWORKS
from benchmarks.sides import Session, Side, Task
from models import light

NAMES = ("squeezenet", "resnet50", "densenet121")
ROUNDS = 5


def feeds(model: onnx.ModelProto) -> dict[str, Array]:
    """Random values for every float input without a default."""
    generator = np.random.default_rng(0)
    defaults = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: generator.standard_normal(
            [d.dim_value for d in value.type.tensor_type.shape.dim], dtype=np.float32
        )
        for value in model.graph.input
        if value.name not in defaults
    }


def main() -> None:
    """Print the table."""
    table = Table("network", title="Image and all weights, 1 thread, CPU time; median \\[quartiles]")
    for column in ("forward nodes", "nodes with gradients", "ratio", "time / forward"):
        table.add_column(column, justify="right")
    task = Task(NETWORKS[0], "input", threads=1)
    for name in NAMES:
        model = light.load(name)
        gradient = onnx_grad.vjp(model, [light.image_name(model), *light.weight_names(model)])
        sides: dict[str, Side] = {
            "forward": Session(model, feeds(model), [], task),
            "gradient": Session(gradient, feeds(gradient), [], task),
        }
        spread = ratios(alternate(sides, ROUNDS, clock_for(1)), "gradient", "forward")
        before, after = len(model.graph.node), len(gradient.graph.node)
        time = f"{spread.median:.1f} [{spread.low:.1f}, {spread.high:.1f}]"
        table.add_row(name, str(before), str(after), f"{after / before:.2f}", time)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
