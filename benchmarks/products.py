"""Matrix products alone, ONNX Runtime's against PyTorch's: the limit for networks that consist of them.

`python -m benchmarks.products` prints the three products of a linear layer, y = x·W, dx = dy·Wᵀ and
dW = xᵀ·dy, weights given at run time, for the layers of the MLP and of the encoder, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper
from rich.console import Console
from rich.table import Table

from benchmarks.layers import OPSET, Array
from benchmarks.measuring import alternate, clock_for, ratios
from benchmarks.networks import NETWORKS
from benchmarks.sides import Session, Side, Task

ROUNDS = 11
# Rows, inputs and outputs of a linear layer.
LAYERS = ((64, 784, 1024), (64, 1024, 1024), (1024, 256, 256), (1024, 256, 1024), (1024, 1024, 256))


class _Torch(Side):
    def __init__(self, step: Callable[[], object]) -> None:
        self.step = step


def product(a: Array, b: Array, trans_a: int, trans_b: int) -> Session:
    """A session of one `Gemm`, both operands given at run time."""
    tensor, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Gemm", ["a", "b"], ["y"], transA=trans_a, transB=trans_b)
    inputs = [tensor("a", number, a.shape), tensor("b", number, b.shape)]
    graph = onnx.helper.make_graph([node], "product", inputs, [tensor("y", number, None)])
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return Session(model, {"a": a, "b": b}, ["y"], Task(NETWORKS[0], "weights", 1))


def measured(rows: int, inputs: int, outputs: int) -> dict[str, dict[str, list[float]]]:
    """The seconds of the three products of a layer on both sides."""
    import torch

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    x, w, dy = (
        generator.standard_normal(shape, dtype=np.float32)
        for shape in ((rows, inputs), (inputs, outputs), (rows, outputs))
    )
    xt, wt, dyt = torch.tensor(x), torch.tensor(np.ascontiguousarray(w.T)), torch.tensor(dy)
    sides: dict[str, dict[str, Side]] = {
        "y": {"ours": product(x, w, 0, 0), "torch": _Torch(lambda: torch.nn.functional.linear(xt, wt))},
        "dx": {"ours": product(dy, w, 0, 1), "torch": _Torch(lambda: dyt @ wt)},
        "dW": {"ours": product(x, dy, 1, 0), "torch": _Torch(lambda: dyt.t() @ xt)},
    }
    return {name: alternate(pair, ROUNDS, clock_for(1)) for name, pair in sides.items()}


def main() -> None:
    """Print the table."""
    table = Table("rows × inputs × outputs", title="Gemm of ONNX Runtime / PyTorch, 1 thread, CPU time")
    for column in ("y = x·W", "dx = dy·Wᵀ", "dW = xᵀ·dy"):
        table.add_column(column, justify="right")
    for layer in LAYERS:
        spreads = [ratios(samples, "ours", "torch") for samples in measured(*layer).values()]
        cells = [f"{s.median:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in spreads]
        table.add_row(" × ".join(map(str, layer)), *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
