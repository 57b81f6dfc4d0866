"""A training step with AdamW against PyTorch eager: ``python -m benchmarks.training``.

Both take the same batch and the same number of threads, alternating in one run; the table gives the fastest
and the median step of each.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from models import FOLDER, digits_mlp, encoder
from onnx_grad.training import LossSpec, Trainer

REPETITIONS = 30
STEPS = 10


def alternate(*actions: Callable[[], object]) -> list[list[float]]:
    """The seconds that a step of each action takes, the actions one after the other."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(REPETITIONS):
        for action, times in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            for _ in range(STEPS):
                action()
            times.append((time.perf_counter() - started) / STEPS)
    return seconds


def ours(name: str, loss: LossSpec, batch: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    trainer = Trainer(
        FOLDER / f"{name}.onnx", loss, "adamw", target="t", training_mode=False, session_options=options
    )
    return lambda: trainer.step(batch)


def eager(
    module: torch.nn.Module, loss: Callable[..., torch.Tensor], batch: dict[str, np.ndarray]
) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    x, t = (torch.from_numpy(array) for array in batch.values())

    def step() -> float:
        optimizer.zero_grad()
        value = loss(module(x), t)
        torch.autograd.backward(value)
        optimizer.step()
        return value.item()

    return step


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    table = Table("model", "batch", title=f"A step with AdamW, {threads} threads: median (fastest), in ms")
    for column in ("onnx_grad", "PyTorch eager", "ratio of medians"):
        table.add_column(column, justify="right")
    functional = torch.nn.functional
    for size in (32, 256):
        pixels = rng.random((size, 64), np.float32)
        mlp = {"pixels": pixels, "t": rng.integers(0, 10, size)}
        embeddings, target = rng.random((2, size // 8, 16, 32), np.float32)
        attention = {"embeddings": embeddings, "t": target}
        for name, loss, module, oracle, batch in (
            ("digits_mlp", "cross_entropy", digits_mlp.load().eval(), functional.cross_entropy, mlp),
            ("encoder", "mean_squared_error", encoder.load(), functional.mse_loss, attention),
        ):
            times = alternate(ours(name, loss, batch, threads), eager(module, oracle, batch))
            medians = [statistics.median(seconds) for seconds in times]
            texts = [f"{1e3 * statistics.median(s):.3f} ({1e3 * min(s):.3f})" for s in times]
            shape = "×".join(map(str, next(iter(batch.values())).shape))
            table.add_row(name, shape, *texts, f"{medians[0] / medians[1]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
