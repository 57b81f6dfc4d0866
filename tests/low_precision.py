"""A provider that computes each node in float32 and rounds its results to half precision, emulated.

ONNX Runtime's CPU provider has few kernels for float16 and hardly any for bfloat16. It runs float16 nodes in
float32, and does not even round what passes from one to the next: what overflows on a GPU does not overflow
there. So a model in half precision is rewritten: its tensors become float32, and behind each node that gave
half precision stands a Cast there and back. Within a node, sums are those of float32 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.oracle import given_names, quiet_vjp

Arrays = Mapping[str, np.ndarray]

DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# The distance from 1 to the next larger number.
UNIT = {"float16": 2.0**-10, "bfloat16": 2.0**-7}

_HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def rounding_after_each_node(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 model that computes what `model` does node by node, rounding as it does."""
    emulation = onnx.shape_inference.infer_shapes(model, data_prop=True)
    _round_after_each_node(emulation.graph, {})
    return emulation


def _round_after_each_node(graph: onnx.GraphProto, outer_types: Mapping[str, int]) -> None:
    values = (*graph.input, *graph.value_info, *graph.output)
    types = dict(outer_types)
    types |= {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _HALF_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = [made for node in graph.node for made in _rounded(node, types)]
    del graph.node[:]
    graph.node.extend(nodes)


def element_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type of every tensor of the main graph, as schemas write it: `tensor(float16)`."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    numbers = {value.name: value.type.tensor_type.elem_type for value in values}
    numbers |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: f"tensor({TensorProto.DataType.Name(n).lower()})" for name, n in numbers.items()}


def run_rounded(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """What a model in half precision gives in the emulation, as float32 arrays."""
    return run(rounding_after_each_node(model), inputs)


def run(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """What a model gives without any optimization, by onnx's reference where ONNX Runtime lacks a kernel."""
    wanted = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    given = {
        name: np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(wanted[name]))
        for name, array in inputs.items()
    }
    names = [value.name for value in model.graph.output]
    session = _session(model)
    if session is None:
        return dict(zip(names, ReferenceEvaluator(model).run(None, given), strict=True))
    return dict(zip(names, session.run(None, given), strict=True))


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    """ONNX Runtime's session, or `None` where it lacks a kernel."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options)
    except (
        onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
        onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    ):
        return None


def exact_gradients(
    model_in: Callable[[Any], onnx.ModelProto], inputs: Arrays, cotangents: Arrays
) -> dict[str, np.ndarray]:
    """The gradients of all float inputs in float64, or, where ONNX Runtime has no kernels for it, in float32.

    Args:
        model_in: Gives the model in a dtype.
        inputs: Where to differentiate.
        cotangents: Of the outputs.
    """
    for dtype in (np.float64, np.float32):
        transformed = quiet_vjp(model_in(dtype), None, list(cotangents))
        if _session(transformed) is not None:
            break
    return gradients_by(transformed, transformed, inputs, cotangents)


def gradients_by(
    model: onnx.ModelProto, transformed: onnx.ModelProto, inputs: Arrays, cotangents: Arrays
) -> dict[str, np.ndarray]:
    """The gradients that `model` gives, which is `transformed` or computes the same, as float64 arrays."""
    cotangent_names, gradient_names = given_names(transformed)
    seeds = {cotangent_names[y]: dy for y, dy in cotangents.items()}
    values = run(model, {**inputs, **seeds})
    return {x: np.asarray(values[name], dtype=np.float64) for x, name in gradient_names.items()}


def _rounded(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """`node` in float32, and the casts that round its outputs."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    for attribute in made.attribute:
        _widen(attribute.t)
        if attribute.type == onnx.AttributeProto.GRAPH:
            _round_after_each_node(attribute.g, types)
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in _HALF_TYPES:
            attribute.i = TensorProto.FLOAT
    casts = []
    for index, name in enumerate(node.output):
        if name and types[name] in _HALF_TYPES:
            made.output[index] = f"{name}/exact"
            casts += [
                helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=types[name]),
                helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT),
            ]
    yield made
    yield from casts


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _HALF_TYPES:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
