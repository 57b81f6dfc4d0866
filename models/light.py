"""The nine image networks that the `onnx` package ships for its backend tests.

Each has the architecture of a well-known network, IR version 3 and opset 9; most weights are made by
`ConstantOfShape` and all 0.02, which keeps the files small and most gradients trivial. `with_random_weights`
gives them weights that a network could have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def load(name: str) -> onnx.ModelProto:
    """The network `name` as it is shipped."""
    return onnx.load(FOLDER / f"light_{name}.onnx")


def image_name(model: onnx.ModelProto) -> str:
    """The name of the image input: the only input without a default value."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    (name,) = [value.name for value in model.graph.input if value.name not in defaults]
    return name


def weight_names(model: onnx.ModelProto) -> list[str]:
    """The names of all weights: float initializers, and what `ConstantOfShape` makes."""
    initializers = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    made = [node.output[0] for node in model.graph.node if node.op_type == "ConstantOfShape"]
    used = {name for node in model.graph.node for name in node.input}
    return [name for name in (*initializers, *made) if name in used]


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy in which `ConstantOfShape` nodes are initializers of He-distributed random values.

    Scales and variances are near one or at least 0.1, means and other vectors near zero.
    """
    generator = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    near_one = set(_factors(model.graph))
    for tensor in copy.graph.initializer:
        if tensor.name in near_one:  # some of the shipped variances are all but zero
            values = np.maximum(onnx.numpy_helper.to_array(tensor), np.float32(0.1))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        name, shape = node.output[0], tuple(map(int, shapes[node.input[0]]))
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 400.0
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2.0 / fan_in))
        if name in near_one:
            values = np.abs(1.0 + values)
        # Filled in place: a tensor that is appended is copied.
        copy.graph.initializer.add(
            name=name, data_type=onnx.TensorProto.FLOAT, dims=shape, raw_data=values.tobytes()
        )
        copy.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    _drop_unused(copy.graph)
    return copy


def _factors(graph: onnx.GraphProto) -> Iterator[str]:
    """The weights that scale channels: of `BatchNormalization`, and those a `Mul` reads unsqueezed."""
    vectors = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Unsqueeze"}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            yield from (node.input[1], node.input[4])
        elif node.op_type == "Mul":
            yield from (vectors[name] for name in node.input if name in vectors)


def logits_name(model: onnx.ModelProto) -> str:
    """The tensor before the last `Softmax`, or the output where there is none."""
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    return str(softmaxes[-1].input[0] if softmaxes else model.graph.output[0].name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that no node reads any more, with their inputs."""
    used = {name for node in graph.node for name in node.input}
    unused = {tensor.name for tensor in graph.initializer} - used
    for field in (graph.initializer, graph.input):
        for index in reversed(range(len(field))):
            if field[index].name in unused:
                del field[index]
