"""What batching gains: one run of a batched gradient model against a run for each example.

`python -m benchmarks.batching` prints gradients of all weights by example, against a loop and against
`torch.func.vmap(torch.func.grad(…))` where PyTorch is installed, and ten cotangents in one run, as for the
Jacobian of ten outputs, against ten runs. All on one thread, alternately; the fastest of ten.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

import onnx_grad
from models import FOLDER

REPETITIONS = 10
EXAMPLES = 64
MODELS = {"digits_mlp": ("pixels", (64,)), "digits_cnn": ("image", (1, 8, 8))}
COTANGENT = "logits_grad"

Feed = dict[str, np.ndarray]
Run = Callable[[Feed], list[np.ndarray]]


def fastest(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The seconds that each action takes, the actions one after the other, the fastest of `REPETITIONS`."""
    found = dict.fromkeys(actions, float("inf"))
    for action in actions.values():
        action()
    for _ in range(REPETITIONS):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            found[name] = min(found[name], time.perf_counter() - started)
    return found


def running(model: onnx.ModelProto) -> Run:
    """Runs a gradient model on one thread and gives its gradients only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs() if output.name.endswith("_grad")]
    return lambda feed: session.run(names, feed)


def loop(one: Run, feeds: Sequence[Feed]) -> None:
    """One run after the other."""
    for feed in feeds:
        one(feed)


def by_example() -> Table:
    """Gradients of all weights for each of the examples."""
    table = Table("network", title=f"Gradients of all weights by example, {EXAMPLES} examples")
    for column in ("vmap", "loop", "loop / vmap", "torch.func", "torch.func / vmap"):
        table.add_column(column, justify="right")
    for name, (source, shape) in MODELS.items():
        gradient = onnx_grad.vjp(FOLDER / f"{name}.onnx", "parameters")
        one = running(gradient)
        every = running(onnx_grad.vmap(gradient, {source: 0, COTANGENT: 0}))
        random = np.random.default_rng(0)
        x = random.random((EXAMPLES, 1, *shape), dtype=np.float32)
        dy = random.standard_normal((EXAMPLES, 1, 10), dtype=np.float32)
        feeds = [{source: a, COTANGENT: d} for a, d in zip(x, dy, strict=True)]
        actions: dict[str, Callable[[], object]] = {
            "vmap": partial(every, {source: x, COTANGENT: dy}),
            "loop": partial(loop, one, feeds),
        }
        if importlib.util.find_spec("torch") is not None:
            actions["torch.func"] = _torch(name, x, dy)
        seconds = fastest(actions)
        peer = seconds.get("torch.func")
        table.add_row(
            name,
            _milliseconds(seconds["vmap"]),
            _milliseconds(seconds["loop"]),
            f"{seconds['loop'] / seconds['vmap']:.1f}",
            "not installed" if peer is None else _milliseconds(peer),
            "" if peer is None else f"{peer / seconds['vmap']:.1f}",
        )
    return table


def ten_cotangents() -> Table:
    """Ten cotangents of one input in one run, and in ten."""
    table = Table("network", "gradients of", "images", title="Ten cotangents in one run")
    for column in ("vmap", "ten runs", "ten runs / vmap"):
        table.add_column(column, justify="right")
    for name, (source, shape) in MODELS.items():
        for wrt in (source, "parameters"):
            gradient = onnx_grad.vjp(FOLDER / f"{name}.onnx", wrt)
            one, every = running(gradient), running(onnx_grad.vmap(gradient, {COTANGENT: 0}))
            for images in (1, 16):
                x = np.random.default_rng(0).random((images, *shape), dtype=np.float32)
                basis = np.repeat(np.eye(10, dtype=np.float32)[:, None], images, axis=1)
                feeds = [{source: x, COTANGENT: dy} for dy in basis]
                together = partial(every, {source: x, COTANGENT: basis})
                seconds = fastest({"vmap": together, "loop": partial(loop, one, feeds)})
                ratio = seconds["loop"] / seconds["vmap"]
                table.add_row(name, wrt, str(images), *map(_milliseconds, seconds.values()), f"{ratio:.1f}")
    return table


def _torch(name: str, x: np.ndarray, dy: np.ndarray) -> Callable[[], object]:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    module = importlib.import_module(f"models.{name}").load().eval()
    weights = {n: p.detach() for n, p in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def loss(parameters: Any, example: Any, cotangent: Any) -> Any:
        return (torch.func.functional_call(module, {**parameters, **buffers}, (example,)) * cotangent).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    examples, cotangents = torch.from_numpy(x), torch.from_numpy(dy)
    return lambda: gradients(weights, examples, cotangents)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def main() -> None:
    """Print both tables."""
    console = Console(width=110)
    console.print(by_example())
    console.print(ten_cotangents())


if __name__ == "__main__":
    main()
