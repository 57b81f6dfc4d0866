"""Peak memory of training a large perceptron: ``python -m benchmarks.training_memory [MILLION_PARAMETERS]``.

The bound is parameters × (2 + slots of the optimizer) + activations, of which the peak of the process, less
what it had before the trainer was made, is printed as a multiple.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnx_grad.training import Trainer

LAYERS = 10
BATCH = 64


def write(path: Path, width: int) -> int:
    """A perceptron of ten square layers with its weights in an external file; returns their bytes."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape(["batch", width]), type=ir.TensorType(ir.DataType.FLOAT))
    value, nodes, weights = x, [], []
    for layer in range(LAYERS):
        content = rng.normal(size=(width, width)).astype(np.float32) / np.float32(width**0.5)
        weight = ir.Value(name=f"w{layer}", const_value=ir.Tensor(content, name=f"w{layer}"))
        weight.shape, weight.type = ir.Shape(content.shape), x.type
        weights.append(weight)
        product = ir.Node("", "MatMul", [value, weight], num_outputs=1)
        relu = ir.Node("", "Relu", [product.outputs[0]], num_outputs=1)
        nodes += [product, relu]
        value = relu.outputs[0]
    value.name, value.shape, value.type = "y", ir.Shape(["batch", width]), x.type
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="mlp")
    ir.save(ir.Model(graph, ir_version=10), path, external_data="mlp.data")
    return sum(weight.const_value.nbytes for weight in weights if weight.const_value is not None)


def peak() -> int:
    """The peak resident memory of this process, in bytes."""
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(path: Path, width: int, parameters: int) -> None:
    batch = {"x": np.ones((BATCH, width), np.float32), "y_target": np.zeros((BATCH, width), np.float32)}
    before = peak()
    trainer = Trainer(path, "mean_squared_error", "adamw", batch_size=BATCH)
    for _ in range(3):
        trainer.step(batch)
    used = peak() - before
    # Forward values of each layer twice, and the two cotangents that are alive at once.
    activations = (2 * LAYERS + 2) * BATCH * width * 4
    bound = parameters * (2 + 2) + activations
    print(
        f"{parameters / 4e6:.0f} million parameters: {used / 2**20:.0f} MiB over the "
        f"{before / 2**20:.0f} MiB before; parameters × 4 + activations = {bound / 2**20:.0f} MiB; "
        f"ratio {used / bound:.3f}"
    )


def main() -> None:
    if len(sys.argv) == 3:
        # In a process of its own, so that writing the file does not count.
        path = Path(sys.argv[1])
        width = int(sys.argv[2])
        measure(path, width, LAYERS * width * width * 4)
        return
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0
    width = int((millions * 1e6 / LAYERS) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.onnx"
        write(path, width)
        command = [sys.executable, "-m", "benchmarks.training_memory", str(path), str(width)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
