"""Draws `models/broadcast_add.onnx` before and after `vjp`, from the graphs themselves.

`python -m docs.broadcast_picture` writes `docs/broadcast_add.png`.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import onnx

import onnx_grad
from models import FOLDER

matplotlib.use("Agg")
from matplotlib import pyplot

FORWARD, BACKWARD, TENSOR = "#dce9f7", "#f9e0cd", "#f2f2f2"


def shapes(model: onnx.ModelProto) -> dict[str, str]:
    """The shape of every value, as text."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    return {
        v.name: "[" + ", ".join(d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim) + "]"
        for v in values
    }


def draw(axes: pyplot.Axes, model: onnx.ModelProto, title: str) -> None:
    """Tensors and operators in columns by their distance from the inputs."""
    shape = shapes(model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    place: dict[str, tuple[float, float]] = {}
    for row, value in enumerate(model.graph.input):
        place[value.name] = (0.0, -float(row))
        _box(axes, place[value.name], f"{value.name} {shape[value.name]}", TENSOR)
    for node in model.graph.node:
        sources = [name for name in node.input if name in place]
        x = max(place[name][0] for name in sources) + 1.6
        y = sum(place[name][1] for name in sources) / len(sources)
        while any(at == (x + 1.6, y) for at in place.values()):
            y -= 1.0
        added = any(entry.key.startswith("pkg.onnx_grad") for entry in node.metadata_props)
        axes_read = [
            str(onnx.numpy_helper.to_array(initializers[n]).tolist()) for n in node.input if n in initializers
        ]
        detail = f" over {axes_read[0]}" if axes_read else ""
        colour = BACKWARD if added else FORWARD
        _box(axes, (x, y), node.op_type + detail, colour)
        for name in sources:
            _arrow(axes, place[name], (x, y))
        (output,) = node.output
        place[output] = (x + 1.6, y)
        _box(axes, place[output], f"{output} {shape[output]}", TENSOR)
        _arrow(axes, (x, y), place[output])
    axes.set_title(title, loc="left", fontsize=11)
    xs, ys = zip(*place.values(), strict=True)
    axes.set_xlim(min(xs) - 0.8, max(xs) + 0.8)
    axes.set_ylim(min(ys) - 0.6, max(ys) + 0.6)
    axes.axis("off")


def _box(axes: pyplot.Axes, at: tuple[float, float], text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "#888888"}
    axes.text(*at, text, ha="center", va="center", fontsize=9, bbox=box, zorder=2)


def _arrow(axes: pyplot.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 40, "shrinkB": 46}
    axes.annotate("", end, start, arrowprops=arrow, zorder=1)


def main() -> None:
    """Write the picture."""
    model = onnx.load(FOLDER / "broadcast_add.onnx")
    figure, (before, after) = pyplot.subplots(2, 1, figsize=(8, 5.2), height_ratios=[2, 4])
    draw(before, onnx.shape_inference.infer_shapes(model), "before: z = a + b")
    draw(
        after,
        onnx_grad.vjp(model),
        "after vjp: the cotangent of z goes in, the gradients of a and b come out",
    )
    figure.tight_layout()
    target = Path(__file__).parent / "broadcast_add.png"
    figure.savefig(target, dpi=120)
    print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
