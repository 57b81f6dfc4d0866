"""Nodes whose batching depends on more than the operator: ranks, axes, defaults, which operands are mapped.

Each form says which inputs are mapped. Integers and booleans that are mapped are drawn anew for each example.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.operator_forms import Form, between, distinct, integers, normal

Array = np.ndarray


@dataclass(frozen=True)
class MappedForm:
    """A node, with what is mapped of it.

    Attributes:
        form: The node for one example.
        examples: The mapped inputs for three examples.
        scans: Whether it is known to run in a `Scan`.
    """

    form: Form
    examples: Mapping[str, Array] = field(default_factory=dict)
    scans: bool = False

    def __str__(self) -> str:
        shapes = ",".join(f"{n}{list(a.shape)}" for n, a in self.form.inputs.items() if a is not None)
        attributes = ",".join(f"{n}={a}" for n, a in self.form.attributes.items())
        return f"{self.form.operator}({shapes};{attributes}) over {''.join(self.examples)}"


_SIZE = 3
_NAMES = "abcdefgh"


def _mapped(
    operator: str, mapped: str, *inputs: Array | None, opset: int = 22, outputs: int = 1, **attributes: Any
) -> MappedForm:
    """A form of which the inputs named in `mapped` have a value for each example."""
    scans = bool(attributes.pop("scans", False))
    given = dict(zip(_NAMES, inputs, strict=False))
    form = Form(operator, given, opset, outputs, attributes)
    return MappedForm(form, {name: _examples(given[name]) for name in mapped}, scans)


def _examples(array: Array | None) -> Array:
    """Three examples of the same kind: other floats of the same sign, other integers of the same range."""
    assert array is not None
    generator = np.random.default_rng(array.size)
    if array.dtype.kind == "f":
        return np.stack([array * factor for factor in (1.0, 0.875, 1.125)])
    return np.stack(
        [array, *(generator.permuted(array.ravel()).reshape(array.shape) for _ in range(_SIZE - 1))]
    )


def _over_each(
    operator: str, names: str, *inputs: Array | None, opset: int = 22, outputs: int = 1, **attributes: Any
) -> Iterator[MappedForm]:
    """Forms of which each nonempty choice of the named inputs is mapped."""
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            yield _mapped(operator, "".join(chosen), *inputs, opset=opset, outputs=outputs, **attributes)


def mapped_forms() -> list[MappedForm]:
    """All of them."""
    groups = (_broadcasting(), _products(), _axes(), _shapes(), _indexing(), _images(), _recurrent())
    return [form for group in groups for form in group]


def _broadcasting() -> Iterator[MappedForm]:
    x, row, column, number = normal(2, 4), normal(4), normal(2, 1), normal()
    for a, b in ((x, row), (row, x), (x, column), (x, number), (number, row), (normal(3, 2, 4), x)):
        yield from _over_each("Sub", "ab", a, b)
    yield from _over_each("Sum", "abc", x, row, number)
    yield from _over_each("Where", "abc", x > 0, row, number)
    yield from _over_each("PRelu", "ab", normal(2, 3, 4), normal(3, 1))
    yield from _over_each("Clip", "abc", x, np.array(-0.5), np.array(0.5))
    yield _mapped("Clip", "ac", row, None, np.array(0.5))
    yield from _over_each("Dropout", "ab", x, np.array(0.5), np.array(False), outputs=2)
    yield _mapped("Dropout", "b", x, np.array(0.5), outputs=2)
    yield _mapped("And", "a", x > 0, row > 0)
    yield _mapped("Equal", "ab", integers(1, 2, 3), integers(2, 2, 3))
    yield _mapped("IsNaN", "a", x)
    byte = np.array(3, dtype=np.uint8)
    yield from _over_each("QuantizeLinear", "abc", x, np.array(0.25), byte)
    yield _mapped("DequantizeLinear", "b", (x * 9).astype(np.int8), np.array(0.25))
    yield _mapped("QuantizeLinear", "a", x, np.array([0.25, 0.5]), axis=0)
    yield _mapped("DequantizeLinear", "a", (x * 9).astype(np.int8), np.array([0.25, 0.5, 1, 2]))
    yield _mapped("DynamicQuantizeLinear", "a", x.astype(np.float32), outputs=3, scans=True)


def _products() -> Iterator[MappedForm]:
    shapes = [(3,), (2, 3), (5, 2, 3)], [(3,), (3, 4), (5, 3, 4)]
    for a, b in itertools.product(*shapes):
        yield from _over_each("MatMul", "ab", normal(*a), normal(*b))
    for trans_a, trans_b in itertools.product((0, 1), (0, 1)):
        a, b = normal(*((3, 2) if trans_a else (2, 3))), normal(*((4, 3) if trans_b else (3, 4)))
        yield from _over_each("Gemm", "abc", a, b, normal(4), transA=trans_a, transB=trans_b, alpha=0.5)
    yield from _over_each("Gemm", "abc", normal(2, 3), normal(3, 4), normal(2, 1), beta=2.0)
    yield from _over_each("Einsum", "ab", normal(2, 3), normal(5, 3, 4), equation="ij,...jk")
    yield from _over_each("Einsum", "ab", normal(3, 3), normal(3), equation="ii,i->i")
    yield _mapped("Det", "a", normal(3, 3))
    signed = np.array([[1, -2, 3], [4, 5, -6]], dtype=np.int8)
    yield from _over_each("MatMulInteger", "ab", signed, signed.T.copy())


def _axes() -> Iterator[MappedForm]:
    x = between(0.5, 2.0, 2, 3, 4)
    for name, keepdims in itertools.product(("ReduceSum", "ReduceMax", "ReduceL2", "ReduceProd"), (0, 1)):
        yield _mapped(name, "a", x, keepdims=keepdims)
        yield _mapped(name, "a", x, integers(), keepdims=keepdims)
        yield _mapped(name, "a", x, integers(1, -1), keepdims=keepdims)
        yield _mapped(name, "a", np.array(1.5), keepdims=keepdims)
    yield _mapped("ReduceSum", "a", x, integers(), noop_with_empty_axes=1)
    yield _mapped("ReduceSum", "a", x, noop_with_empty_axes=1)
    for name, axis in itertools.product(("ArgMax", "Softmax", "LogSoftmax", "Hardmax"), (0, 1, -1)):
        yield _mapped(name, "a", x, axis=axis)
    yield _mapped("ArgMin", "a", x, keepdims=0)
    yield _mapped("CumSum", "a", x, np.array(-2, dtype=np.int64), reverse=1)
    yield _mapped("CumSum", "a", x, np.array(0, dtype=np.int64), exclusive=1)
    yield _mapped("TopK", "a", distinct(2, 5), integers(2), outputs=2, axis=1)
    yield _mapped("LpNormalization", "a", x, axis=0)
    yield _mapped("LayerNormalization", "abc", x, normal(3, 4), normal(4), axis=1)
    yield _mapped("LayerNormalization", "b", x, normal(4), axis=2, outputs=3)
    yield _mapped("LayerNormalization", "a", x, normal(3, 4), axis=-2)
    yield _mapped("DFT", "a", normal(2, 6, 1), None, np.array(-2, dtype=np.int64))
    yield _mapped("DFT", "a", normal(2, 6, 1), opset=18, axis=1)


def _shapes() -> Iterator[MappedForm]:
    x = normal(2, 3, 4)
    yield _mapped("Reshape", "a", x, integers(0, -1))
    yield _mapped("Reshape", "a", x, integers(2, 0, -1))
    yield _mapped("Reshape", "a", x, integers(-1), allowzero=1)
    yield _mapped("Reshape", "a", normal(2, 0), integers(0, 3), allowzero=1)
    for axis in (0, 1, 3, -1, -3):
        yield _mapped("Flatten", "a", x, axis=axis)
    yield _mapped("Squeeze", "a", normal(1, 3, 1))
    yield _mapped("Squeeze", "a", normal(2, 3))
    yield _mapped("Squeeze", "a", normal(1, 3, 1), integers(0, -1))
    yield _mapped("Unsqueeze", "a", x, integers(0, -1))
    yield _mapped("Expand", "a", normal(3, 1), integers(2, 3, 4))
    yield _mapped("Expand", "a", normal(3, 1), integers(4))
    yield _mapped("Transpose", "a", x)
    yield _mapped("Transpose", "a", x, perm=[2, 0, 1])
    yield from _over_each("Concat", "ab", x, normal(2, 3, 1), axis=-1)
    yield _mapped("Split", "a", x, integers(1, 3), outputs=2, axis=-1)
    yield _mapped("Split", "a", x, outputs=2, num_outputs=2)
    yield _mapped("Slice", "a", x, integers(0, 1), integers(1, 9))
    yield _mapped("Slice", "a", x, integers(-1, 2), integers(-9, 0), integers(-1, 1), integers(-1, -1))
    yield _mapped("Pad", "a", x, integers(1, 0, 0, 0, 2, 0))
    yield _mapped("Pad", "a", x, integers(1, 2), np.array(0.5), integers(1))
    yield _mapped("Pad", "ac", x, integers(1, 0, 0, 0, 2, 0), np.array(0.5), scans=True)
    yield _mapped("Pad", "a", x, integers(1, 1, 0, 0, 0, 0), mode="edge")
    yield _mapped("Tile", "a", x, integers(1, 2, 2))
    yield _mapped("Trilu", "a", x, np.array(1, dtype=np.int64), upper=0)
    yield _mapped("CenterCropPad", "a", x, integers(3, 2), axes=[1, -1])
    yield _mapped("CenterCropPad", "a", x, integers(1, 4, 4))
    for time in (0, 1):
        yield from _over_each(
            "ReverseSequence", "ab", normal(3, 3, 2), integers(1, 3, 2), time_axis=time, batch_axis=1 - time
        )
    yield _mapped("EyeLike", "a", normal(2, 3))
    yield _mapped("Shape", "a", x)
    yield _mapped("Shape", "a", x, start=-2)
    yield _mapped("Shape", "a", x, start=1, end=-1)
    yield _mapped("Size", "a", x)
    yield _mapped("CastLike", "b", integers(1, 2), x)


def _indexing() -> Iterator[MappedForm]:
    x, picks = normal(3, 4, 3), integers([0, 2, -1], [1, 1, 0])
    for axis in (0, 1, -1):
        yield from _over_each("Gather", "ab", x, picks, axis=axis)
    yield from _over_each("Gather", "ab", x, np.array(1, dtype=np.int64), axis=1)
    yield from _over_each("Gather", "ab", normal(4), integers(0, 3, 3))
    elements = integers([0, 2, 1, 1], [2, 0, 0, 1])
    for axis in (0, -1):
        table = distinct(3, 7) if axis == 0 else distinct(2, 4)
        yield from _over_each("GatherElements", "ab", table, elements, axis=axis)
        updates = distinct(2, 4) + 0.25
        yield from _over_each("ScatterElements", "ac", table, elements, updates, axis=axis, reduction="add")
    yield _mapped("ScatterElements", "b", distinct(3, 7), elements, normal(2, 4), reduction="max")
    yield from _over_each("GatherND", "ab", x, integers([0, 1], [2, 0]))
    yield from _over_each("GatherND", "ab", x, integers([[1]], [[0]], [[3]]), batch_dims=1)
    points = integers([0, 1], [2, 0])
    yield from _over_each("ScatterND", "abc", x, points, normal(2, 3), reduction="add")
    for axis in (0, -1):
        yield from _over_each("OneHot", "ac", picks, np.array(3, dtype=np.int64), normal(2), axis=axis)
    keep = np.array([True, False, True])
    yield _mapped("Compress", "a", x, keep, axis=0)
    yield _mapped("Compress", "a", x, keep)


def _images() -> Iterator[MappedForm]:
    x, weights = normal(2, 4, 5, 5), normal(6, 2, 3, 3)
    yield from _over_each("Conv", "abc", x, weights, normal(6), group=2, pads=[1, 0, 1, 1], strides=[2, 1])
    yield from _over_each("Conv", "ab", normal(2, 2, 7), normal(3, 2, 3), dilations=[2])
    yield _mapped("Conv", "ab", x, normal(6, 4, 3, 3), auto_pad="SAME_UPPER", scans=True)
    filters = normal(4, 3, 3, 3)
    yield from _over_each("ConvTranspose", "b", x, filters, normal(3), strides=[2, 1])
    yield _mapped("ConvTranspose", "ac", x, filters, normal(3))
    yield _mapped("ConvTranspose", "ab", x, filters, normal(3), scans=True)
    image = distinct(2, 2, 6, 6)
    yield _mapped("MaxPool", "a", image, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    yield _mapped("MaxPool", "a", image, outputs=2, kernel_shape=[2, 2], storage_order=1)
    channels = [normal(4), normal(4)[::-1].copy(), normal(4) * 0.5, between(0.5, 2.0, 4)]
    yield from _over_each("BatchNormalization", "ab", x, *channels)
    yield _mapped("BatchNormalization", "ae", x, *channels)
    yield from _over_each("BatchNormalization", "ad", x, *channels, outputs=3, training_mode=1)
    yield from _over_each("InstanceNormalization", "abc", x, *channels[:2])
    yield from _over_each("GroupNormalization", "abc", x, *channels[:2], num_groups=2)
    yield _mapped("GroupNormalization", "b", x, normal(2), normal(2), num_groups=2, opset=18, scans=True)
    yield _mapped("MeanVarianceNormalization", "a", x, axes=[0, -1])
    scales = np.array([1, 1, 2, 2], dtype=np.float32)
    yield _mapped("Resize", "a", x, None, scales, mode="nearest")
    yield _mapped("Resize", "a", x, None, scales, mode="cubic")
    yield _mapped("Resize", "a", x, None, scales[2:], mode="linear", axes=[2, 3])
    yield _mapped("Resize", "a", normal(4, 5), None, scales[2:], mode="linear")
    yield _mapped("Resize", "a", normal(4, 5), None, scales[2:], mode="nearest")
    rois = np.array([[0.4, 0.3, 3.6, 3.1], [1.2, 0.7, 3.3, 3.9]])
    sampling = {"output_height": 2, "output_width": 2, "sampling_ratio": 2, "opset": 21}
    yield from _over_each("RoiAlign", "abc", x, rois, integers(0, 1), **sampling)
    boxes = np.array([[0.0, 0.0, 1.0, 3.0, 4.0], [1.0, 1.0, 1.0, 4.0, 4.0]])
    yield _mapped("MaxRoiPool", "a", image, boxes, pooled_shape=[2, 2], opset=21)
    yield _mapped("AffineGrid", "a", normal(2, 2, 3), integers(2, 3, 4, 5))
    yield from _over_each("GridSample", "ab", x, between(-0.9, 0.9, 2, 3, 3, 2))
    rotated, angles = normal(1, 2, 6, 4), between(0.0, 3.0, 6, 2)
    positions = integers([0, 1, 2, 3, 4, 5])
    tables = (np.cos(angles), np.sin(angles))
    yield _mapped("RotaryEmbedding", "ad", rotated, *tables, positions, opset=23)
    yield _mapped("RotaryEmbedding", "abc", rotated, *(t[None] for t in tables), opset=23)


def _recurrent() -> Iterator[MappedForm]:
    x, lengths = normal(4, 2, 3), np.array([2, 4], dtype=np.int32)
    for operator, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        weights = normal(2, gates * 5, 3), normal(2, gates * 5, 5), normal(2, gates * 10)
        state = normal(2, 2, 5)
        outputs = 3 if operator == "LSTM" else 2
        more = [state, state * 0.5] if operator == "LSTM" else [state]
        settings: dict[str, Any] = {"hidden_size": 5, "direction": "bidirectional", "outputs": outputs}
        yield _mapped(operator, "a", x, *weights, None, *more, **settings)
        yield _mapped(operator, "ae", x, *weights, lengths, *more, **settings)
        yield _mapped(operator, "f", x, *weights, None, *more, **settings)
        yield _mapped(operator, "b", x, *weights, **settings, scans=True)
