"""A model in another precision: the same function, evaluated with 16 digits or with 7.

Finite differences lose half of the digits they start from, so the model is converted to float64 as a whole:
weights, constants, the types of inputs and values, and the attributes that name a type. An operator that the
specification does not allow to be float64 is made float64 all the same where an evaluator of our own has it,
which ONNX Runtime then refuses. Any other stays in lower precision between two casts, and is reported if that
rounds what is differentiated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad import registry
from onnx_grad.checking.float64_operators import WITHOUT_RESTRICTION
from onnx_grad.errors import OnnxGradError
from onnx_grad.known import may_be_float

_FLOAT_NAMES = {
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(bfloat16)": ir.DataType.BFLOAT16,
}
_FLOATS = frozenset(_FLOAT_NAMES.values())
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype", "softmax_precision")

# Operators whose result is float32 when no attribute says otherwise, and the attribute.
_FLOAT_BY_DEFAULT = {
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "SequenceEmpty": "dtype",
    "MelWeightMatrix": "output_datatype",
    "HannWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "BlackmanWindow": "output_datatype",
}

# Inputs without a derivative of operators that have no rule: they are lifted to others.
_FROZEN = {"Upsample": frozenset({1})}


class PrecisionError(OnnxGradError):
    """The model cannot be converted; the message says which node is in the way."""


@dataclass(frozen=True)
class ConvertedModel:
    """A model all of whose floats are of one type.

    Attributes:
        model: The converted model; every value of the original keeps its name.
        held: The nodes that round what is differentiated to another precision, one line of text each.
    """

    model: ir.Model
    held: tuple[str, ...]


def to_precision(model: ir.Model, dtype: ir.DataType) -> ConvertedModel:
    """Convert every float tensor in a copy of `model` to `dtype`.

    Args:
        model: A model without model-local functions, its values' types inferred.
        dtype: `DOUBLE` or `FLOAT`.

    Raises:
        PrecisionError: A node has no public specification, or the type of a value it reads is unknown.
    """
    model = model.clone()
    opsets = model.graph.opset_imports
    nodes = list(model.graph.all_nodes())
    schemas = {node: _schema(node, opsets) for node in nodes}
    casts = {node: list(_casts(node, schemas[node], dtype)) for node in nodes}
    for graph in model.graphs():
        _convert_values(graph, dtype)
    for node in nodes:
        keeps_outputs = any(not cast.is_input for cast in casts[node])
        _convert_attributes(node, dtype, () if keeps_outputs else _TYPE_ATTRIBUTES)
        if _sets_precision(node, schemas[node]):
            node.attributes["stash_type"] = ir.AttrInt64("stash_type", int(dtype))
    rounding = {node: _rounding(node, casts[node]) for node in nodes}
    held = tuple(_held_text(node, rounding[node]) for node in nodes if rounding[node])
    taken = _names(model)
    for node in nodes:
        for cast in casts[node]:
            cast.insert(node, dtype, taken)
    return ConvertedModel(model, held)


@dataclass(frozen=True)
class _Cast:
    """An input or output of a node that cannot be of the type wanted, and the type it gets."""

    index: int
    is_input: bool
    formal: str
    dtype: ir.DataType

    def insert(self, node: ir.Node, outside: ir.DataType, taken: set[str]) -> None:
        """Put the cast before or behind the node; `taken` are the names in use."""
        value = node.inputs[self.index] if self.is_input else node.outputs[self.index]
        assert value is not None
        if self.is_input:
            cast = _cast(value, self.dtype, _unique(f"{node.name}/{self.formal}_{self.index}", taken), taken)
            node.prepend(cast)
            node.replace_input_with(self.index, cast.outputs[0])
            return
        cast = _cast(value, outside, value.name or "", taken)
        node.append(cast)
        value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        value.name = _unique(f"{value.name}/{self.dtype.name.lower()}", taken)
        value.type = ir.TensorType(self.dtype)


def _cast(value: ir.Value, dtype: ir.DataType, name: str, taken: set[str]) -> ir.Node:
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    label = _unique(f"{name}/Cast", taken)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=label)


def _names(model: ir.Model) -> set[str]:
    """The names of all nodes and values."""
    taken = {node.name for node in model.graph.all_nodes()}
    for graph in model.graphs():
        produced = (value for node in graph for value in node.outputs)
        taken |= {value.name for value in (*graph.inputs, *graph.initializers.values(), *produced)}
    return {name for name in taken if name}


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or one like it that is not taken yet; it is from now on."""
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _schema(node: ir.Node, opsets: Mapping[str, int]) -> onnx.defs.OpSchema:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, opsets.get(node.domain))
    try:
        return onnx.defs.get_schema(node.op_type, version or 1, domain)
    except onnx.defs.SchemaError as error:
        raise PrecisionError(
            f"operator '{node.domain}.{node.op_type}' of node '{node.name}' has no public specification"
        ) from error


def _casts(node: ir.Node, schema: onnx.defs.OpSchema, dtype: ir.DataType) -> Iterator[_Cast]:
    """The inputs and outputs of `node` that its specification keeps from being of type `dtype`."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    free = not node.domain and node.op_type in WITHOUT_RESTRICTION and dtype is ir.DataType.DOUBLE
    for is_input, values, formals in (
        (True, node.inputs, schema.inputs),
        (False, node.outputs, schema.outputs),
    ):
        for index, value in enumerate(values):
            if value is None or not value.name or not formals:
                continue
            formal = formals[min(index, len(formals) - 1)]
            types = allowed.get(formal.type_str, {formal.type_str})
            floats = [_FLOAT_NAMES[name] for name in _FLOAT_NAMES if name in types]
            # ONNX Runtime takes LayerNormalization in float64 as long as nothing reads its statistics.
            if not floats or dtype in floats or (free and (is_input or _is_read(value))):
                continue
            if value.dtype is None and len(floats) < len(types):
                raise PrecisionError(
                    f"the type of '{value.name}' at node '{node.name}' ({node.op_type}) is unknown"
                )
            if value.dtype is None or value.dtype in _FLOATS:
                yield _Cast(index, is_input, formal.name, floats[0])


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _sets_precision(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    """Whether `node` computes, in the precision that `stash_type` names, what an evaluator takes from it."""
    if node.op_type == "LayerNormalization":
        return any(map(_is_read, node.outputs[1:]))
    return node.op_type == "GroupNormalization" and "stash_type" in schema.attributes


def _rounding(node: ir.Node, casts: Sequence[_Cast]) -> list[_Cast]:
    """The casts that lose digits of something with a derivative.

    None does where only integers come out, or where nothing goes in that may be perturbed. A frozen input
    has the digits that it has in the model, which the type in the specification can hold.
    """
    frozen = registry.lookup(node.domain, node.op_type).frozen | _FROZEN.get(node.op_type, frozenset())
    moved = {i for i, v in enumerate(node.inputs) if v is not None and may_be_float(v)} - frozen
    results = {i for i, value in enumerate(node.outputs) if may_be_float(value) and _is_read(value)}
    if not moved or not results:
        return []
    return [cast for cast in casts if cast.index in (moved if cast.is_input else results)]


def _held_text(node: ir.Node, casts: Sequence[_Cast]) -> str:
    names = ", ".join(cast.formal for cast in casts)
    return f"{node.op_type} '{node.name}': {names} in {casts[0].dtype.name.lower()}"


def _convert_values(graph: ir.Graph, dtype: ir.DataType) -> None:
    produced = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *produced):
        value.type = _converted_type(value.type, dtype)
        if value.const_value is not None:
            value.const_value = _converted_tensor(value.const_value, dtype)


def _converted_type(type_: ir.TypeProtocol | None, dtype: ir.DataType) -> ir.TypeProtocol | None:
    if isinstance(type_, ir.TensorType) and type_.dtype in _FLOATS:
        return ir.TensorType(dtype, denotation=type_.denotation)
    if isinstance(type_, (ir.SequenceType, ir.OptionalType)):
        inner = _converted_type(type_.elem_type, dtype)
        assert inner is not None
        return type(type_)(inner, denotation=type_.denotation)
    return type_


def _converted_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    if tensor.dtype not in _FLOATS or tensor.dtype is dtype:
        return tensor
    return ir.Tensor(tensor.numpy().astype(dtype.numpy()), name=tensor.name)


def _convert_attributes(node: ir.Node, dtype: ir.DataType, type_attributes: Sequence[str]) -> None:
    attributes = node.attributes
    if node.op_type == "Constant":
        for name in ("value_float", "value_floats"):
            if name in attributes:
                content = np.array(attributes.pop(name).value, dtype=dtype.numpy())
                attributes["value"] = ir.AttrTensor("value", ir.Tensor(content))
    if node.op_type == "ConstantOfShape" and "value" not in attributes:
        attributes["value"] = ir.AttrTensor("value", ir.Tensor(np.zeros(1, dtype.numpy())))
    if node.op_type in _FLOAT_BY_DEFAULT and _FLOAT_BY_DEFAULT[node.op_type] not in attributes:
        name = _FLOAT_BY_DEFAULT[node.op_type]
        attributes[name] = ir.AttrInt64(name, int(dtype))
    for name, attribute in list(attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR:
            attributes[name] = ir.AttrTensor(name, _converted_tensor(attribute.as_tensor(), dtype))
        elif attribute.type == ir.AttributeType.TYPE_PROTO:
            held = attribute.value
            converted = ir.TypeAndShape(_converted_type(held.type, dtype), held.shape)
            attributes[name] = ir.AttrTypeProto(name, converted)
        elif name in type_attributes and attribute.value in _FLOATS:
            attributes[name] = ir.AttrInt64(name, int(dtype))
