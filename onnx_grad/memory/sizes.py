"""How many bytes the tensors of a model take, given the sizes that its symbols stand for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.errors import InputError
from onnx_grad.prepare.infer import infer
from onnx_grad.prepare.load import Model, load
from onnx_grad.prepare.validate import validate

# The note of a node that gives its first operand as it is, though it computes the shape to give it: its name.
HELD = METADATA_PREFIX + "held"


def sized(model: Model, sizes: Mapping[str, int] | None) -> ir.Model:
    """A copy of `model` with shapes inferred where its symbols have the given `sizes`.

    Raises:
        InputError: A symbol is in no shape of the model's inputs, or its size is no number of elements.
        ModelError: The model is damaged, or its shapes do not fit together at these sizes.
    """
    light = load(model)
    validate(light.proto)
    proto = onnx.ModelProto()
    proto.CopyFrom(light.proto)
    inputs = [ir.serde.deserialize_value_info_proto(value, None) for value in proto.graph.input]
    check_sizes(sizes or {}, inputs)
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in (sizes or {}):
                dim.dim_value = (sizes or {})[dim.dim_param]
    result = ir.from_proto(_infer_through_gates(proto))
    light.attach(result)
    return result


def _infer_through_gates(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inference that knows that a value held at a gate has the shape that it had before."""
    held = {
        index: onnx.NodeProto.FromString(node.SerializeToString())
        for index, node in enumerate(proto.graph.node)
        if any(note.key == HELD for note in node.metadata_props)
    }
    for index in held:
        proto.graph.node[index].op_type = "Identity"
        del proto.graph.node[index].input[1:], proto.graph.node[index].attribute[:]
    inferred = infer(proto)
    for index, node in held.items():
        inferred.graph.node[index].CopyFrom(node)
    return inferred


def check_sizes(sizes: Mapping[str, int], inputs: Iterable[ir.Value]) -> None:
    """See that `sizes` are numbers of elements, of symbols in the shapes of `inputs`.

    Raises:
        InputError: They are not.
    """
    dims = (dim for value in inputs for dim in known.dimensions(value) or ())
    symbols = {dim.value for dim in dims if not isinstance(dim, int) and dim.value is not None}
    for symbol, size in sizes.items():
        if symbol not in symbols:
            named = ", ".join(f"'{s}'" for s in sorted(symbols)) or "no symbols"
            raise InputError(f"sizes: no input of the model has a dimension '{symbol}'; they have {named}")
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
            raise InputError(f"sizes: '{symbol}' is to be a number of elements, not {size!r}")


def byte_size(value: ir.Value) -> int | None:
    """The bytes of a tensor; `None` where its shape or type is not known, or it is no tensor."""
    shape = known.static_shape(value)
    if shape is None or not isinstance(value.type, ir.TensorType) or value.dtype is ir.DataType.STRING:
        return None
    return math.ceil(math.prod(shape) * value.type.dtype.bitwidth / 8)


def total_bytes(values: Iterable[ir.Value]) -> int:
    """The bytes of those whose size is known."""
    return sum(byte_size(value) or 0 for value in values)
