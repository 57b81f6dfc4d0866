"""Keeping weights out of everything that copies models.

Shape inference, opset conversion and the checker copy what they are given and stop at 2 GB, so they see a
light copy of the model in which each large initializer is an input of the same name, shape and type.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.errors import ModelError
from onnx_grad.prepare.serialization import without_initializers
from onnx_grad.prepare.validate import all_nodes

# Shapes, indices and axes are smaller than this, and inference needs their content.
LARGEST_INLINE_BYTES = 1024


@dataclass
class LightModel:
    """A model without its large weights.

    Attributes:
        proto: The model; large initializers are inputs behind the others.
        tensors: Every initializer of the main graph by name, in the model's order, its data where it was.
        base_dir: The folder that external data locations are relative to.
        declared_inputs: The names of the model's own graph inputs.
    """

    proto: onnx.ModelProto
    tensors: dict[str, ir.TensorProtocol]
    base_dir: str = ""
    declared_inputs: tuple[str, ...] = ()

    def attach(self, model: ir.Model) -> None:
        """Put the weights back into the `model` that was made from the light proto."""
        graph, detached = model.graph, self.detached()
        held = [value for value in graph.inputs if value.name in detached]
        kept = [value for value in graph.inputs if value.name not in detached]
        graph.inputs.clear()
        graph.inputs.extend(kept)
        values = {value.name: value for value in (*graph.initializers.values(), *held, *kept)}
        graph.initializers.clear()
        for name, tensor in self.tensors.items():
            value = values[name]
            value.const_value = tensor
            graph.register_initializer(value)

    def adopt(self) -> None:
        """Take in the initializers that a conversion of the proto has added to it."""
        for tensor in self.proto.graph.initializer:
            if tensor.name not in self.tensors:
                self.tensors[tensor.name] = ir.serde.deserialize_tensor(tensor)

    def detached(self) -> set[str]:
        """Names of the initializers that are inputs in `proto` though they are none in the model."""
        declared = set(self.declared_inputs)
        inline = {tensor.name for tensor in self.proto.graph.initializer}
        return {name for name in self.tensors if name not in inline and name not in declared}


def lighten(proto: onnx.ModelProto, base_dir: str = "") -> LightModel:
    """The light copy of `proto`; its weights are referenced, not copied.

    Sparse initializers become dense ones, which is also what ONNX Runtime makes of them.

    Raises:
        ModelError: External data is missing, too short or outside of `base_dir`.
    """
    light = onnx.ModelProto()
    for field_, value in proto.ListFields():
        if field_.name == "graph":
            continue
        if field_.is_repeated:
            getattr(light, field_.name).extend(value)
        elif field_.message_type is not None:
            getattr(light, field_.name).CopyFrom(value)
        else:
            setattr(light, field_.name, value)
    for field_, value in proto.graph.ListFields():
        if field_.name in ("initializer", "sparse_initializer"):
            continue
        if field_.is_repeated:
            getattr(light.graph, field_.name).extend(value)
        else:
            setattr(light.graph, field_.name, value)
    tensors = {}
    for tensor in (*proto.graph.initializer, *map(_dense, proto.graph.sparse_initializer)):
        tensors[tensor.name] = _referenced(tensor, base_dir)
    result = LightModel(light, tensors, base_dir, tuple(value.name for value in proto.graph.input))
    _add_initializers(result)
    return result


def lighten_ir(model: ir.Model, annotated: bool = True) -> LightModel:
    """The light copy of an `ir.Model`, whose tensors are referenced as they are.

    Args:
        model: The model.
        annotated: Whether a value of its main graph may have a quantization annotation.
    """
    graph = model.graph
    tensors = {}
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise ModelError(
                f"initializer '{name}' has no data; load the weights of the model before transforming it"
            )
        tensors[name] = value.const_value
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_external(value.const_value)
    declared = tuple(value.name or "" for value in graph.inputs)
    result = LightModel(without_initializers(model, annotated), tensors, "", declared)
    _add_initializers(result)
    return result


def heavy(light: LightModel) -> onnx.ModelProto:
    """The light model's proto with all its weights put back; external tensors stay external."""
    proto = light.proto
    detached = light.detached()
    inputs = [value for value in proto.graph.input if value.name not in detached]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    del proto.graph.initializer[:]
    for name, tensor in light.tensors.items():
        serialized = proto.graph.initializer.add()
        ir.serde.serialize_tensor_into(serialized, tensor)
        serialized.name = name
    return proto


def _add_initializers(light: LightModel) -> None:
    declared = set(light.declared_inputs)
    graph = light.proto.graph
    for name, tensor in light.tensors.items():
        if tensor.nbytes <= LARGEST_INLINE_BYTES and _is_readable(tensor):
            _inline(graph.initializer.add(), name, tensor)
        elif name not in declared:
            shape = [d if isinstance(d, int) else d.value for d in tensor.shape]
            graph.input.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape))


def _is_readable(tensor: ir.TensorProtocol) -> bool:
    """Whether the data is at hand: a `ModelProto` does not say which folder its external data lies in."""
    return not isinstance(tensor, ir.ExternalTensor) or bool(tensor.base_dir)


def _inline(proto: onnx.TensorProto, name: str, tensor: ir.TensorProtocol) -> None:
    ir.serde.serialize_tensor_into(proto, tensor)
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        proto.Clear()
        ir.serde.serialize_tensor_into(proto, ir.Tensor(tensor.numpy(), dtype=tensor.dtype))
    proto.name = name


def _referenced(tensor: onnx.TensorProto, base_dir: str) -> ir.TensorProtocol:
    try:
        referenced = ir.serde.deserialize_tensor(tensor, base_dir)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"initializer '{tensor.name}' is damaged: {error}") from error
    if isinstance(referenced, ir.ExternalTensor):
        _check_external(referenced)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != referenced.nbytes:
        raise ModelError(
            f"initializer '{tensor.name}' is damaged: its shape {tuple(tensor.dims)} needs "
            f"{referenced.nbytes} bytes, and it holds {len(tensor.raw_data)}"
        )
    return referenced


def check_external(tensors: Iterable[ir.TensorProtocol], base_dir: str) -> None:
    """Point external `tensors` at `base_dir` and see that their data is there."""
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = base_dir
            _check_external(tensor)


def _check_external(tensor: ir.ExternalTensor) -> None:
    """The data file lies inside the model's folder and is long enough."""
    name, location, folder = tensor.name, os.fspath(tensor.location), os.fspath(tensor.base_dir)
    if not folder:
        return
    root, path = os.path.realpath(folder), os.path.realpath(tensor.path)
    if os.path.isabs(location) or os.path.commonpath([root, path]) != root:
        raise ModelError(
            f"initializer '{name}': its external data '{location}' lies outside of the model's folder "
            f"'{folder}'; move the data file next to the model and store a relative location"
        )
    if not os.path.isfile(path):
        raise ModelError(
            f"initializer '{name}': its external data file '{location}' is missing from the model's folder "
            f"'{folder}'; copy it there"
        )
    end = (tensor.offset or 0) + tensor.nbytes
    size = os.path.getsize(path)
    if end > size:
        raise ModelError(
            f"initializer '{name}': its external data should end at byte {end} of '{location}', "
            f"which has only {size} bytes; the file is truncated or belongs to another model"
        )


def make_constants_dense(graph: onnx.GraphProto) -> None:
    """Let the nodes `Constant` of `graph` and of its subgraphs hold dense tensors."""
    for node in all_nodes(graph):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "sparse_value":
                dense = _dense(attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """A sparse tensor as a dense one: values at linear or coordinate indices, zeros elsewhere."""
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(dense, sparse.values.name)
