"""Networks with something to recompute, and comparing gradients with and without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from onnx_grad.recomputation.rematerialize import RECOMPUTES
from tests.graphs import parse

LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def perceptron(layers: int, shape: str = "batch, 4", opset: int = 18) -> onnx.ModelProto:
    """`layers` layers h = sin(x·w) of width 4, the weights inputs: `x`, `w0`, … to `y`."""
    weights = ", ".join(f"float[4, 4] w{i}" for i in range(layers))
    nodes = " ".join(
        f"p{i} = MatMul ({'x' if i == 0 else f'h{i - 1}'}, w{i}) h{i} = Sin (p{i})" for i in range(layers)
    )
    last = f"h{layers - 1}"
    graph = f"g (float[{shape}] x, {weights}) => (float[{shape}] y) {{ {nodes} y = Identity ({last}) }}"
    return parse(graph, opset=opset)


def example(model: onnx.ModelProto, **sizes: int) -> dict[str, np.ndarray]:
    """Random inputs of the declared shapes."""
    random = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [sizes.get(d.dim_param, d.dim_value) for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = np.asarray(random.uniform(-0.5, 0.5, shape), dtype)
    return feeds


def outputs(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], level: str = "all"
) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes at an optimisation level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], rtol: float = 1e-6) -> None:
    """Assert that two runs give the same, up to what fusing operators does to rounding."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        scale = float(np.abs(array).max(initial=0.0))
        np.testing.assert_allclose(other[name], array, rtol=rtol, atol=rtol * scale, err_msg=name)


def optimized(model: onnx.ModelProto, folder: Path, level: str) -> onnx.ModelProto:
    """The model as ONNX Runtime runs it."""
    path = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return onnx.load(path)


def executed(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], folder: Path, level: str
) -> Sequence[str]:
    """The names of the nodes in the order in which ONNX Runtime ran them."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text())
    suffix = "_kernel_time"
    return [event["name"].removesuffix(suffix) for event in events if event["name"].endswith(suffix)]


def recomputed(model: onnx.ModelProto) -> dict[str, str]:
    """The clones in a model, by name, with the names of the nodes that they repeat."""
    return {
        node.name: entry.value
        for node in model.graph.node
        for entry in node.metadata_props
        if entry.key == RECOMPUTES
    }
