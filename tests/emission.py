"""What is emitted for every form of every operator that onnx's backend cases have, and for a few more.

Each form is one node. At the oldest opset that has it, it is transformed with static shapes and constant
integer inputs, and with everything given at run time and symbolic or unknown shapes; the first form of each
operator at the newest opset too. Operators without a rule are transformed with static shapes only.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

import onnx_grad
from onnx_grad import registry
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.registry import State
from tests.conformance.cases import FLOATS, load_cases
from tests.graphs import parse
from tests.oracle import with_shapes

OLDEST, NEWEST = 18, onnx.defs.onnx_opset_version()
DIFFERENTIABLE = (State.RULE, State.EXPANDED)
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Emission:
    """What the transform added for one form.

    Attributes:
        form: What was transformed, for messages.
        operator: The operator of the forward node.
        opset: Of the graph.
        nodes: The added nodes: operator type, and element type of what they compute with.
        differentiated: Positions of the forward node's inputs that a cotangent reached.
        cotangents: Positions of its outputs from which cotangents came.
    """

    form: str
    operator: str
    opset: int
    nodes: frozenset[tuple[str, str]]
    differentiated: frozenset[int]
    cotangents: frozenset[int]


@functools.cache
def emissions() -> tuple[Emission, ...]:
    """Of all forms that are not refused."""
    found = []
    seen: set[str] = set()
    for name, model, point in _forms():
        operator = model.graph.node[0].op_type
        for opset, knowledge, variant in _variants(model, point, is_first=operator not in seen):
            seen.add(operator)
            emission = _emission(f"{name}, {knowledge}, opset {opset}", variant, opset)
            if emission is not None:
                found.append(emission)
    return tuple(found)


def _forms() -> Iterator[tuple[str, onnx.ModelProto, Arrays]]:
    """Models of one node of a differentiable operator that differ in more than their data."""
    seen = set()
    for name, model, point in (*_backend_cases(), *_more()):
        node = model.graph.node[0]
        if node.domain or registry.lookup("", node.op_type).state not in DIFFERENTIABLE:
            continue
        signature = _signature(model)
        if signature not in seen:
            seen.add(signature)
            yield name, model, point


def _backend_cases() -> Iterator[tuple[str, onnx.ModelProto, Arrays]]:
    for case in load_cases():
        graph = case.model.graph
        if len(graph.node) == 1 and not graph.initializer and case.wrt and case.of:
            yield case.name, case.model, case.points[0]


# Forms that the backend cases lack, or have for integers only.
_MORE = """
    g (float[1,2,4,4] x, float[2,2,3,3] w, float[2] b) => (float[1,2,2,2] y) { y = Conv(x, w, b) }
    g (float[1,2,4,4] x, float[2,2,3,3] w, float[2] b) => (float[1,2,6,6] y) { y = ConvTranspose(x, w, b) }
    g (float[1,2,4,4] x) => (float[1,2,1,1] y) { y = GlobalLpPool(x) }
    g (float[1,2,4,4] x) => (float[1,2,4,4] y) { y = MeanVarianceNormalization <axes=[0, 2, 3]> (x) }
    g (float[1,2,4,4] x, float[1,5] r) => (float[1,2,1,1] y) { y = MaxRoiPool <pooled_shape=[1, 1]> (x, r) }
    g (float[4,4] x, int64 k) => (float[4,4] y) { y = Trilu(x, k) }

    g (float[3,1,2] x, float[2,2,2] w, float[2,2,2] r, float[2,4] b, int32[1] n, float[2,1,2] h)
        => (float[3,2,1,2] y, float[2,1,2] yh) {
        y, yh = RNN <hidden_size = 2, direction = "bidirectional", clip = 1.0> (x, w, r, b, n, h)
    }

    g (float[3,1,2] x, float[2,6,2] w, float[2,6,2] r, float[2,12] b, int32[1] n, float[2,1,2] h)
        => (float[3,2,1,2] y, float[2,1,2] yh) {
        y, yh = GRU <hidden_size = 2, direction = "bidirectional", clip = 1.0> (x, w, r, b, n, h)
    }

    g (float[3,1,2] x, float[2,8,2] w, float[2,8,2] r, float[2,16] b, int32[1] n, float[2,1,2] h,
       float[2,1,2] c, float[2,6] p) => (float[3,2,1,2] y, float[2,1,2] yh, float[2,1,2] yc) {
        y, yh, yc = LSTM <hidden_size = 2, direction = "bidirectional", clip = 1.0> (x, w, r, b, n, h, c, p)
    }

    g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Sin(x) },
                    else_branch = e () => (float[2] b) { b = Mul(x, x) }>
    }

    g (int64 n, bool c, float[2] x) => (float[2] y, float[k, 2] s) {
        y, s = Loop (n, c, x) <body = b (int64 i, bool p, float[2] u) => (bool q, float[2] v, float[2] w) {
            q = Identity(p)
            v = Sin(u)
            w = Mul(v, u)
        }>
    }
"""


def _more() -> Iterator[tuple[str, onnx.ModelProto, Arrays]]:
    for graph in _MORE.split(" g (")[1:]:
        model = parse(f"g ({graph}")
        yield f"a form of {model.graph.node[0].op_type}", model, {}


def _signature(model: onnx.ModelProto) -> tuple[object, ...]:
    (node,) = model.graph.node
    tensors = {value.name: value.type.tensor_type for value in model.graph.input}
    types = [
        ("float" if tensor.elem_type in FLOATS else tensor.elem_type, len(tensor.shape.dim))
        for tensor in (tensors.get(name, onnx.TypeProto.Tensor()) for name in node.input)
    ]
    attributes = sorted((a.name, a.SerializeToString()) for a in node.attribute)
    return node.op_type, tuple(types), tuple(map(bool, node.output)), tuple(attributes)


def _is_valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.opset_import[:]
    copy.opset_import.append(onnx.helper.make_opsetid("", opset))
    return copy


def _variants(
    model: onnx.ModelProto, point: Arrays, is_first: bool
) -> Iterator[tuple[int, str, onnx.ModelProto]]:
    """The form at its oldest opset, with all that may be known of it, and the first form at its newest."""
    valid = [m for m in (_at_opset(model, v) for v in range(OLDEST, NEWEST + 1)) if _is_valid(m)]
    if not valid:
        return
    oldest, newest = valid[0], valid[-1]
    opset = oldest.opset_import[0].version
    if registry.lookup("", model.graph.node[0].op_type).state is State.EXPANDED:
        yield opset, "static shapes", oldest
        return
    yield opset, "static shapes and constant integers", _with_constant_integers(oldest, point)
    for knowledge in ("symbolic", "unknown"):
        yield opset, f"{knowledge} shapes", with_shapes(oldest, knowledge)
    if is_first and newest is not oldest:
        yield newest.opset_import[0].version, "unknown shapes", with_shapes(newest, "unknown")


def _with_constant_integers(model: onnx.ModelProto, point: Arrays) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for value in [v for v in copy.graph.input if v.type.tensor_type.elem_type not in FLOATS]:
        if isinstance(point.get(value.name), np.ndarray):
            copy.graph.input.remove(value)
            copy.graph.initializer.append(onnx.numpy_helper.from_array(point[value.name], value.name))
    return copy


def _emission(form: str, model: onnx.ModelProto, opset: int) -> Emission | None:
    """`None` where the form is refused, or has no float input."""
    (node,) = model.graph.node
    inputs = [v.name for v in model.graph.input if v.type.tensor_type.elem_type in FLOATS]
    outputs = [v.name for v in model.graph.output if v.type.tensor_type.elem_type in FLOATS]
    if not inputs or not outputs:
        return None
    with warnings.catch_warnings(record=True) as zeros:
        warnings.simplefilter("always", onnx_grad.NoPathWarning)
        try:
            transformed = onnx_grad.vjp(model, inputs, outputs)
        except (onnx_grad.UnsupportedOpError, onnx_grad.ModelError):
            return None
    untouched = [name for name in inputs if any(f"'{name}'" in str(zero.message) for zero in zeros)]
    return Emission(
        form,
        node.op_type,
        opset,
        frozenset(node_types(transformed.graph, {}, added_only=True)),
        frozenset(i for i, name in enumerate(node.input) if name in inputs and name not in untouched),
        frozenset(i for i, name in enumerate(node.output) if name in outputs),
    )


def node_types(
    graph: onnx.GraphProto, outer_types: Mapping[str, int], added_only: bool = False
) -> Iterator[tuple[str, str]]:
    """Operator and element type of the nodes, those in bodies included; of all, or what a transform added."""
    types = dict(outer_types)
    types.update(
        (v.name, v.type.tensor_type.elem_type) for v in (*graph.input, *graph.value_info, *graph.output)
    )
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    for node in graph.node:
        if not added_only or any(entry.key.startswith(METADATA_PREFIX) for entry in node.metadata_props):
            yield node.op_type, _element_type([types[n] for n in (*node.output, *node.input) if n in types])
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from node_types(body, types, added_only)


def _element_type(types: list[int]) -> str:
    """ "float" when there is any float, else the type of the last input."""
    if FLOATS.intersection(types):
        return "float"
    return str(onnx.TensorProto.DataType.Name(types[-1])).lower()
