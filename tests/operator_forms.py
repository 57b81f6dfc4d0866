"""One node of every differentiable operator with data to run it on, for tests that ask the same of them all.

The points are smooth: no ties, no zeros, no edges of domains. Float inputs are float64; tests bring them to
other types.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from tests.oracle import single_node

Array = np.ndarray
HALF_TYPES = {"float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


@dataclass(frozen=True)
class Form:
    """A node of one operator.

    Attributes:
        operator: Its type.
        inputs: Its inputs in order; `None` for one that is left out.
        opset: Of the model.
        outputs: How many outputs it has.
        attributes: Its attributes.
    """

    operator: str
    inputs: Mapping[str, Array | None]
    opset: int = 22
    outputs: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def model(self, dtype: Any) -> onnx.ModelProto:
        """The model of the node, its float64 inputs declared as `dtype`."""
        model = single_node(
            self.operator,
            {name: None if a is None else _retyped(a, dtype) for name, a in self.inputs.items()},
            outputs=self.outputs,
            opset=self.opset,
            **self.attributes,
        )
        for output in model.graph.output:
            if not output.type.HasField("tensor_type"):  # onnx infers no type for GroupNormalization
                output.type.CopyFrom(model.graph.input[0].type)
        return model

    def point(self, dtype: Any) -> dict[str, Array]:
        """The inputs, those in float64 rounded to `dtype`."""
        return {name: _retyped(a, dtype) for name, a in self.inputs.items() if a is not None}

    def allows(self, dtype: str) -> bool:
        """Whether the operator takes inputs of a half precision type where this form has floats."""
        schema = onnx.defs.get_schema(self.operator, self.opset)
        position = next(i for i, a in enumerate(self.inputs.values()) if a is not None and a.dtype == float)
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        constraint = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        return HALF_TYPES[dtype] in constraint.get(formal.type_str, [formal.type_str])


def _retyped(array: Array, dtype: Any) -> Array:
    return array.astype(dtype) if array.dtype == np.float64 else array


def normal(*shape: int) -> Array:
    """Normally distributed numbers, the same for the same shape."""
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def between(low: float, high: float, *shape: int) -> Array:
    """Uniformly distributed numbers."""
    return np.asarray(np.random.default_rng(sum(shape)).uniform(low, high, shape))


def distinct(*shape: int) -> Array:
    """Numbers that stay apart in half precision, in random order."""
    count = int(np.prod(shape))
    return (np.random.default_rng(count).permutation(count) - count // 2 + 0.3).reshape(shape) / 2


def integers(*values: Any) -> Array:
    """An int64 vector, or a tensor of lists."""
    return np.array(values, dtype=np.int64)


_names = "abcdefgh"


def _form(operator: str, *inputs: Array | None, opset: int = 22, outputs: int = 1, **attributes: Any) -> Form:
    return Form(operator, dict(zip(_names, inputs, strict=False)), opset, outputs, attributes)


_IMAGE = normal(2, 2, 5, 5)
_UNARY = {
    "Abs Asinh Atan Cos Cosh Elu Erf Exp Gelu HardSwish Identity LeakyRelu Mish Neg Relu Selu Sigmoid Sin "
    "Sinh Softplus Softsign Tan Tanh ThresholdedRelu": normal(2, 9),
    "Acos Asin Atanh HardSigmoid Shrink": between(-0.9, 0.9, 2, 9),
    "Log Reciprocal Sqrt": between(0.5, 2.0, 2, 9),
    "Acosh": between(1.5, 3.0, 2, 9),
    "Softmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum "
    "ReduceSumSquare LpNormalization": distinct(3, 7),
    "ReduceLogSum": between(0.5, 2.0, 3, 7),
    "GlobalAveragePool GlobalMaxPool": distinct(2, 2, 5, 5),
    "MeanVarianceNormalization Flatten Transpose Squeeze": _IMAGE,
}
_BINARY = {
    "Add Sub Mul": (normal(3, 7), normal(7)),
    "Div Pow": (between(0.5, 3.0, 3, 7), between(0.6, 2.0, 7)),
    "PRelu": (normal(3, 7), normal(7)),
    "Max Min Sum Mean": (normal(3, 7), normal(7)),
    "MatMul": (normal(3, 7), normal(7, 4)),
}


@functools.cache
def operator_forms() -> tuple[Form, ...]:
    """At least one form of every operator of the default domain that has a derivative and no body."""
    unary = [_form(name, x) for names, x in _UNARY.items() for name in names.split()]
    binary = [_form(name, a, b) for names, (a, b) in _BINARY.items() for name in names.split()]
    groups = (unary, binary, _reductions(), _moving(), _windows(), _normalizations(), _others())
    return tuple(itertools.chain(*groups))


def _reductions() -> list[Form]:
    x, axes = distinct(2, 3, 5), integers(0, 2)
    names = (
        "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare".split()
    )
    return [
        _form("ReduceProd", between(0.5, 2.0, 3, 4)),
        *(_form(name, x, axes, keepdims=0) for name in names),
        _form("ReduceProd", between(0.8, 1.25, 2, 3, 5), axes, keepdims=0),
        _form("ReduceLogSum", between(0.5, 2.0, 2, 3, 5), axes, keepdims=0),
        _form("CumSum", normal(3, 7), np.array(1, dtype=np.int64)),
        _form("CumProd", between(0.8, 1.25, 3, 7), np.array(1, dtype=np.int64), opset=26),
        _form("Det", normal(2, 3, 3)),
    ]


def _moving() -> list[Form]:
    """Operators that move elements."""
    x, rows = normal(3, 7), integers(0, 2, 2)
    elements = integers([0, 2, 1, 1], [2, 0, 0, 0])
    return [
        _form("Cast", x, to=onnx.TensorProto.FLOAT),
        _form("CastLike", x, np.zeros(1, dtype=np.float32)),
        _form("Clip", normal(3, 8), np.array(-0.7), np.array(0.9)),
        _form("Compress", x, np.array([True, False, True]), axis=0, opset=28),
        _form("CenterCropPad", normal(4, 5), integers(6, 3)),
        _form("Concat", x, normal(3, 2), axis=1),
        _form("DepthToSpace", normal(2, 8, 2, 3), blocksize=2),
        _form("Einsum", x, normal(7, 4), equation="ij,jk->ik", opset=28),
        _form("Expand", normal(3, 1), integers(3, 5)),
        _form("Gather", x, rows),
        _form("GatherElements", x, elements),
        _form("GatherND", x, integers([0, 1], [2, 2], [0, 1])),
        _form("OneHot", integers(0, 3, 1), np.array(4, dtype=np.int64), normal(2), opset=22),
        _form("Pad", x, integers(1, 0, 2, 1), np.array(0.5)),
        _form("Pad", x, integers(1, 2, 1, 2), mode="reflect"),
        _form("Range", np.array(0.5), np.array(7.0), np.array(0.75), opset=28),
        _form("Reshape", x, integers(7, 3)),
        _form("ReverseSequence", x, integers(2, 1, 3, 2, 2, 1, 3), opset=28),
        _form("ScatterElements", x, elements, normal(2, 4), axis=0),
        _form("ScatterElements", distinct(3, 7), elements, distinct(2, 4) + 0.25, axis=0, reduction="max"),
        _form("ScatterElements", normal(3, 7), elements, normal(2, 4), axis=0, reduction="mul"),
        _form("ScatterND", x, integers([0], [2], [0]), normal(3, 7), reduction="add"),
        _form("Slice", x, integers(1), integers(6), integers(1), integers(2)),
        _form("SpaceToDepth", normal(2, 2, 4, 6), blocksize=2),
        _form("Split", normal(3, 8), outputs=2, axis=1, num_outputs=2),
        _form("TensorScatter", normal(2, 5, 3), normal(2, 2, 3), integers(1, 2), opset=24),
        _form("Tile", x, integers(2, 3)),
        _form("TopK", distinct(3, 7), integers(2), outputs=2, opset=24),
        _form("Trilu", x),
        _form("Unique", distinct(7), outputs=4, opset=28),
        _form("Unsqueeze", x, integers(1)),
        _form("Where", normal(3, 7) > 0, x, normal(7)),
    ]


def _windows() -> list[Form]:
    weights, pads = normal(3, 2, 3, 3), [1, 0, 1, 1]
    pixels = between(0.25, 0.75, 2, 3, 4, 2) + np.random.default_rng(0).integers(0, 4, (2, 3, 4, 2))
    grid = (2 * pixels + 1) / 5 - 1
    boxes = np.array([[0.4, 0.3, 3.6, 3.1], [1.2, 0.7, 3.3, 3.9]])
    return [
        _form("AveragePool", _IMAGE, kernel_shape=[3, 3], strides=[2, 1], pads=pads),
        _form("LpPool", _IMAGE, kernel_shape=[3, 3], strides=[2, 1], p=2),
        _form("LpPool", between(0.5, 2.0, 2, 2, 5, 5), kernel_shape=[2, 2], p=3),
        _form("MaxPool", distinct(2, 2, 5, 5), kernel_shape=[2, 2], strides=[1, 2], pads=pads),
        _form(
            "MaxUnpool",
            between(0.5, 2.0, 1, 1, 2, 2),
            integers([[[0, 3], [8, 15]]]),
            kernel_shape=[2, 2],
            strides=[2, 2],
        ),
        _form(
            "MaxRoiPool",
            distinct(1, 2, 5, 5),
            np.array([[0.0, 0.0, 1.0, 3.0, 4.0]]),
            opset=21,
            pooled_shape=[2, 2],
        ),
        _form("GlobalLpPool", distinct(2, 2, 5, 5), opset=21, p=3),
        _form("Conv", _IMAGE, weights, normal(3), pads=pads),
        _form("ConvTranspose", _IMAGE, normal(2, 3, 3, 3), normal(3), strides=[2, 1]),
        _form("DeformConv", _IMAGE, normal(3, 2, 2, 2), between(0.2, 0.8, 2, 8, 4, 4)),
        _form("Col2Im", normal(2, 8, 9), integers(4, 4), integers(2, 2)),
        _form("GridSample", _IMAGE, grid),
        _form("AffineGrid", normal(2, 2, 3), integers(2, 3, 4, 5)),
        _form("Resize", _IMAGE, None, np.array([1, 1, 2, 2], dtype=np.float32), mode="linear"),
        _form(
            "RoiAlign",
            _IMAGE,
            boxes,
            integers(0, 1),
            output_height=2,
            output_width=2,
            sampling_ratio=2,
        ),
    ]


def _normalizations() -> list[Form]:
    channels = [normal(2), normal(2)[::-1].copy()]
    statistics = [np.array([0.25, -0.5]), np.array([0.75, 1.5])]
    return [
        _form("BatchNormalization", _IMAGE, *channels, *statistics),
        _form("BatchNormalization", _IMAGE, *channels, *statistics, outputs=3, training_mode=1),
        _form("InstanceNormalization", _IMAGE, *channels),
        _form("GroupNormalization", normal(2, 4, 5), normal(4), normal(4)[::-1].copy(), num_groups=2),
        _form("LayerNormalization", normal(3, 8), normal(8), normal(8)[::-1].copy()),
        _form("RMSNormalization", normal(3, 8), normal(8), opset=23),
        _form("LRN", normal(2, 6, 3, 1), size=3, alpha=0.5),
    ]


def _others() -> list[Form]:
    query, keys = normal(1, 2, 3, 4), normal(1, 2, 5, 4)
    angles = between(0.0, 3.0, 6, 2)
    return [
        _form("Attention", query, keys, keys[::-1] * 0.75, opset=24),
        _form(
            "CausalConvWithState",
            normal(2, 3, 6),
            normal(3, 1, 3),
            normal(3),
            normal(2, 3, 2),
            outputs=2,
            opset=28,
        ),
        _form("Celu", normal(3, 8), alpha=0.5, opset=28),
        _form(
            "DequantizeLinear",
            np.array([[3, 120], [7, 255]], dtype=np.uint8),
            np.array(0.25),
            np.array(100, dtype=np.uint8),
            opset=22,
        ),
        _form("DFT", normal(2, 6, 1), None, np.array(1, dtype=np.int64)),
        _form("Dropout", normal(3, 8), np.array(0.5), np.array(False)),
        _form("Gemm", normal(3, 7), normal(7, 4), normal(4), alpha=0.5, beta=2.0),
        _form(
            "LinearAttention",
            normal(1, 3, 4),
            normal(1, 3, 4),
            normal(1, 3, 4),
            opset=28,
            outputs=2,
            q_num_heads=2,
            kv_num_heads=2,
            update_rule="linear",
        ),
        _form("NegativeLogLikelihoodLoss", normal(3, 7), integers(1, 6, 0), normal(7)),
        _form("SoftmaxCrossEntropyLoss", normal(3, 7), integers(1, 6, 0), normal(7)),
        _form("Mod", between(0.5, 3.0, 3, 7), between(0.6, 2.0, 7), fmod=1),
        _form("RotaryEmbedding", normal(1, 2, 6, 4), np.cos(angles)[None], np.sin(angles)[None], opset=23),
        _form(
            "STFT",
            normal(2, 12, 1),
            np.array(3, dtype=np.int64),
            between(0.5, 1.0, 6),
            np.array(6, dtype=np.int64),
        ),
        _form("SwiGLU", normal(3, 8), normal(3, 8)[::-1].copy(), opset=28),
        _form("Swish", normal(3, 8), alpha=1.5, opset=24),
    ]
