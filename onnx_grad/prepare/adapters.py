"""Old forms of operators in opset 18, where onnx's version converter gets them wrong.

What the converter of onnx 1.23 does: it leaves the axis of `Hardmax` alone, though that no longer flattens
the axes behind it; it flattens for `Softmax` and `LogSoftmax` in a way that fails for tensors of size 0; it
makes another interpolation of `Resize` and `Upsample`, and keeps both scales and sizes; it forgets what the
outputs of `Scatter` and `Upsample` were called; it makes float32 constants for `Clip` and `Pad` whatever they
compute in; it refuses `BatchNormalization` in training mode or with statistics for each element; it changes
the type and the content of the mask of `Dropout`; it forgets the batch of `Scan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_grad.errors import ModelError

Nodes = Iterator[onnx.NodeProto]


@dataclass(frozen=True)
class Scope:
    """What is known of the values that a node can read.

    Attributes:
        opset: The opset of the model.
        types: Types by name; inference does not find all of them.
        constants: Constant tensors by name.
    """

    opset: int
    types: Mapping[str, onnx.TypeProto]
    constants: Mapping[str, onnx.TensorProto]

    def dtype(self, name: str) -> int:
        """The element type of a value, float32 where it is not known."""
        known = self.types.get(name, onnx.TypeProto()).tensor_type.elem_type
        return known or TensorProto.FLOAT

    def rank(self, name: str) -> int | None:
        """The rank of a value, or `None`."""
        tensor_type = self.types.get(name, onnx.TypeProto()).tensor_type
        return len(tensor_type.shape.dim) if tensor_type.HasField("shape") else None

    def constant(self, name: str) -> np.ndarray | None:
        """The content of a value that is constant, or `None`."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


Adapter = Callable[[onnx.NodeProto, Scope], Nodes]


def adapter(node: onnx.NodeProto, opset: int) -> Adapter | None:
    """What makes opset-18 nodes of a node at `opset`; `None` where that is left to the converter."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _ADAPTERS:
        return None
    right_from, adapt = _ADAPTERS[node.op_type]
    return adapt if opset < right_from else None


def _batch_normalization(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """Outputs beyond the first mean training; `spatial=0` means statistics for each element."""
    attributes = _attributes(node)
    epsilon = attributes.get("epsilon", 1e-5)
    if not attributes.pop("spatial", 1):
        yield from _normalization_of_elements(node, epsilon, scope)
        return
    y, *statistics = [*node.output, "", "", "", ""][:5]
    if not any(statistics):
        yield _like(node, node.input, [y], **attributes)
        return
    mean, variance, saved_mean, saved_deviation = statistics
    outputs = [y, mean or f"{y}/mean", variance or f"{y}/variance"]
    yield _like(node, node.input, outputs, **attributes, training_mode=1)
    if saved_mean or saved_deviation:
        yield from _saved_statistics(node.input[0], y, saved_mean, saved_deviation, epsilon, scope)


def _normalization_of_elements(node: onnx.NodeProto, epsilon: float, scope: Scope) -> Nodes:
    """y = scale·(x − mean)/√(variance + ε) + bias, where all but x lack the batch axis only."""
    (x, scale, bias, mean, variance), y = node.input, node.output[0]
    yield _constant(f"{y}/epsilon", epsilon, scope.dtype(x))
    yield _node("Add", [variance, f"{y}/epsilon"], f"{y}/variance")
    yield _node("Sqrt", [f"{y}/variance"], f"{y}/deviation")
    yield _node("Sub", [x, mean], f"{y}/centred")
    yield _node("Div", [f"{y}/centred", f"{y}/deviation"], f"{y}/standard")
    yield _node("Mul", [f"{y}/standard", scale], f"{y}/scaled")
    yield _node("Add", [f"{y}/scaled", bias], y)


def _saved_statistics(
    x: str, y: str, saved_mean: str, saved_deviation: str, epsilon: float, scope: Scope
) -> Nodes:
    """What training saved of each channel: its mean, and 1/√(variance + ε), as ONNX Runtime does."""
    yield _constant(f"{y}/row_shape", [0, 0, -1], TensorProto.INT64)
    yield _constant(f"{y}/axes", [0, 2], TensorProto.INT64)
    yield _constant(f"{y}/epsilon", epsilon, scope.dtype(x))
    yield _node("Reshape", [x, f"{y}/row_shape"], f"{y}/rows")
    yield _node("ReduceMean", [f"{y}/rows", f"{y}/axes"], saved_mean or f"{y}/saved_mean", keepdims=0)
    yield _node("ReduceMean", [f"{y}/rows", f"{y}/axes"], f"{y}/centre")
    yield _node("Sub", [f"{y}/rows", f"{y}/centre"], f"{y}/centred")
    yield _node("Mul", [f"{y}/centred", f"{y}/centred"], f"{y}/squares")
    yield _node("ReduceMean", [f"{y}/squares", f"{y}/axes"], f"{y}/spread", keepdims=0)
    yield _node("Add", [f"{y}/spread", f"{y}/epsilon"], f"{y}/raised")
    yield _node("Sqrt", [f"{y}/raised"], f"{y}/deviation")
    yield _node("Reciprocal", [f"{y}/deviation"], saved_deviation or f"{y}/saved_deviation")


def _same(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """ONNX Runtime adds the operator to the default domain, where the converter does not know it."""
    yield _like(node, node.input, node.output, **_attributes(node))


def _clip(node: onnx.NodeProto, scope: Scope) -> Nodes:
    bounds = _attributes(node)
    inputs = list(node.input)
    for bound in ("min", "max"):
        name = f"{node.output[0]}/{bound}" if bound in bounds else ""
        if name:
            yield _constant(name, bounds[bound], scope.dtype(node.input[0]))
        inputs.append(name)
    yield _like(node, inputs, node.output)


def _dropout(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """The identity; ONNX Runtime fills the mask with zeros, of the type of the input before opset 10.

    The ratio does not matter for that, but for training.
    """
    (x, *_), (y, *masks) = node.input, node.output
    inputs, ratio = [x], _attributes(node).get("ratio")
    if ratio is not None:
        inputs.append(f"{y}/ratio")
        yield _constant(f"{y}/ratio", ratio, TensorProto.FLOAT)
    yield _like(node, inputs, [y])
    if any(masks):
        zero = helper.make_tensor("zero", scope.dtype(x) if scope.opset < 10 else TensorProto.BOOL, [1], [0])
        yield _node("Shape", [x], f"{y}/shape")
        yield _node("ConstantOfShape", [f"{y}/shape"], masks[0], value=zero)


def _pad(node: onnx.NodeProto, scope: Scope) -> Nodes:
    attributes = _attributes(node)
    pads, value = f"{node.output[0]}/pads", f"{node.output[0]}/value"
    yield _constant(pads, attributes.pop("pads"), TensorProto.INT64)
    yield _constant(value, attributes.pop("value", 0.0), scope.dtype(node.input[0]))
    yield _like(node, [*node.input, pads, value], node.output, **attributes)


def _resize(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """Before opset 11, coordinates were counted from the corner of a pixel."""
    if scope.opset >= 11:
        yield from _resize_with_sizes(node)
        return
    x, scales = node.input
    mode = _attributes(node).get("mode", b"nearest")
    if mode != b"nearest":
        yield _resized(node, x, scales, node.output[0], mode=mode)
        return
    # ONNX Runtime rounds down along axes that grow, and up along those that shrink.
    y, factors = node.output[0], scope.constant(scales)
    if factors is not None and (factors >= 1).all():
        yield _resized(node, x, scales, y, mode=mode, nearest_mode="floor")
    elif factors is not None and (factors <= 1).all():
        yield _resized(node, x, scales, y, mode=mode, nearest_mode="ceil")
    else:
        yield _constant(f"{y}/one", 1.0, TensorProto.FLOAT)
        yield _node("Max", [scales, f"{y}/one"], f"{y}/growth")
        yield _node("Min", [scales, f"{y}/one"], f"{y}/shrinkage")
        yield _resized(node, x, f"{y}/growth", f"{y}/grown", mode=mode, nearest_mode="floor")
        yield _resized(node, f"{y}/grown", f"{y}/shrinkage", y, mode=mode, nearest_mode="ceil")


def _resize_with_sizes(node: onnx.NodeProto) -> Nodes:
    """Opset 11 had scales even beside sizes, and a coordinate mode of TensorFlow for nearest pixels."""
    attributes, inputs = _attributes(node), list(node.input)
    if len(inputs) == 4 and inputs[3]:
        inputs[2] = ""
    # (x + ½)/scale is the half-pixel coordinate plus ½: ⌊c + ½⌋ and ⌈c + ½ − ½⌉.
    rounding = {b"floor": b"round_prefer_ceil", b"round_prefer_floor": b"ceil"}
    nearest = attributes.get("nearest_mode", b"round_prefer_floor")
    if attributes.get("coordinate_transformation_mode") == b"tf_half_pixel_for_nn" and nearest in rounding:
        attributes |= {"coordinate_transformation_mode": b"half_pixel", "nearest_mode": rounding[nearest]}
    yield _like(node, inputs, node.output, **attributes)


def _upsample(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """`Resize` by factors of at least one, which were an attribute before opset 9."""
    attributes = _attributes(node)
    x, *scales = node.input
    if not scales:
        scales = [f"{node.output[0]}/scales"]
        yield _constant(scales[0], attributes["scales"], TensorProto.FLOAT)
    mode = attributes.get("mode", b"nearest")
    yield _resized(node, x, scales[0], node.output[0], mode=mode, nearest_mode="floor")


def _resized(node: onnx.NodeProto, x: str, scales: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """Name `y` the resized `x`, coordinates counted from the corner of a pixel."""
    corner = {"coordinate_transformation_mode": "asymmetric"}
    return _node(
        "Resize", [x, "", scales], y, name=node.name if y in node.output else "", **attributes, **corner
    )


def _scan(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """Opset 8 scans each element of a batch by itself, which the converter forgets."""
    raise ModelError(
        f"node '{node.name}' is a Scan of opset {scope.opset}, which goes over a batch as newer ones do not; "
        "export the model with opset 9 or newer"
    )


def _scatter(node: onnx.NodeProto, scope: Scope) -> Nodes:
    yield _node("ScatterElements", node.input, node.output[0], name=node.name, **_attributes(node))


def _softmax(node: onnx.NodeProto, scope: Scope) -> Nodes:
    """Before opset 13: of a matrix, whose rows hold the given axis and all behind it."""
    (x,), (y,) = node.input, node.output
    axis, rank = _attributes(node).get("axis", 1), scope.rank(x)
    if axis == -1 or (rank is not None and axis == rank - 1):
        yield _like(node, [x], [y], axis=-1)
        return
    yield _node("Shape", [x], f"{y}/shape")
    yield _node("Flatten", [x], f"{y}/rows", axis=axis)
    yield _like(node, [f"{y}/rows"], [f"{y}/of_rows"], axis=-1)
    yield _node("Reshape", [f"{y}/of_rows", f"{y}/shape"], y, allowzero=1)


# The opset from which on the converter is right.
_ADAPTERS: dict[str, tuple[int, Adapter]] = {
    "BatchNormalization": (14, _batch_normalization),
    "Clip": (11, _clip),
    "Dropout": (12, _dropout),
    "Hardmax": (13, _softmax),
    "LayerNormalization": (17, _same),
    "LogSoftmax": (13, _softmax),
    "Pad": (11, _pad),
    "Resize": (13, _resize),
    "Scan": (9, _scan),
    "Scatter": (11, _scatter),
    "SimplifiedLayerNormalization": (18, _same),
    "Softmax": (13, _softmax),
    "Upsample": (10, _upsample),
}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _like(
    node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
) -> onnx.NodeProto:
    """The node with other inputs, outputs and attributes; its name, documentation and metadata stay."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    fresh = helper.make_node(node.op_type, inputs, outputs, **attributes)
    for field in ("input", "output", "attribute"):
        result.ClearField(field)
        getattr(result, field).extend(getattr(fresh, field))
    return result


def _node(
    op_type: str, inputs: Sequence[str], output: str, *, name: str = "", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=name or output, **attributes)


def _constant(name: str, value: float | Sequence[int] | Sequence[float], dtype: int) -> onnx.NodeProto:
    array = np.asarray(value, dtype=helper.tensor_dtype_to_np_dtype(dtype))
    return _node("Constant", [], name, value=numpy_helper.from_array(array, name))
