"""Initializers as inputs that are one slice of them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir


def sliced_initializers(
    proto: onnx.ModelProto, tensors: Mapping[str, ir.TensorProtocol], axes: Mapping[str, int]
) -> onnx.ModelProto:
    """A copy of a light `proto` with initializers as inputs, of the shape of a slice of them.

    All shapes that the model states of other values are dropped, as they are those for whole initializers.

    Args:
        proto: The model.
        tensors: The initializers by name.
        axes: The axis that each is sliced along.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    slices = {name: _slice(name, tensor, axes[name]) for name, tensor in tensors.items()}
    inputs = [slices.pop(value.name, value) for value in graph.input]
    initializers = [tensor for tensor in graph.initializer if tensor.name not in tensors]
    del graph.input[:], graph.initializer[:]
    graph.input.extend([*inputs, *slices.values()])
    graph.initializer.extend(initializers)
    return copy


def _slice(name: str, tensor: ir.TensorProtocol, axis: int) -> onnx.ValueInfoProto:
    """The input that is a slice of an initializer."""
    shape = [d if isinstance(d, int) else d.value for d in tensor.shape]
    del shape[axis]
    return onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape)
