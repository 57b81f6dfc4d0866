"""Lifting a model to the oldest opset that the rules are written for."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnx_grad.errors import ModelError
from onnx_grad.prepare.adapters import Scope, adapter
from onnx_grad.prepare.opset6 import LIFTED, from_opset_6
from onnx_grad.prepare.validate import opset_of

OLDEST_OPSET = 18


def is_old(proto: onnx.ModelProto) -> bool:
    """Whether the rules are not written for the opset of `proto`."""
    version = opset_of(proto)
    return version is not None and version < OLDEST_OPSET


def lift(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` at opset 18, or `proto` itself when it is at 18 or later.

    Node and value names, types, shapes and metadata of the model are those it had.

    Raises:
        ModelError: onnx's version converter cannot convert the model.
    """
    version = opset_of(proto)
    if version is None or version >= OLDEST_OPSET:
        return proto
    if version < 7:
        proto = from_opset_6(_convert(proto, 6) if version < 6 else proto)
    lifted = _lifted(proto, max(version, 7))
    _restore(lifted, proto)
    _replace(lifted.functions, [_lifted_function(function, proto) for function in proto.functions])
    return lifted


def _lifted(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    lifted = _convert(_adapted(proto, version), OLDEST_OPSET)
    _enter_default_domain(lifted)
    return lifted


def _lifted_function(function: onnx.FunctionProto, proto: onnx.ModelProto) -> onnx.FunctionProto:
    """The function with its body at opset 18; only functions that have a rule are not inlined by now."""
    version = opset_of(function)
    if version is None or version >= OLDEST_OPSET:
        return function
    # The converter forgets attributes that the caller gives: such nodes wait outside.
    bound = {n.output[0]: n for n in function.node if any(a.ref_attr_name for a in n.attribute)}
    for node in bound.values():
        if version < 7 or not _is_compatible(node, version):
            raise ModelError(
                f"function '{function.name}' of domain '{function.domain}' uses opset {version}, and its "
                f"{node.op_type}, which takes an attribute from the caller, cannot be converted to "
                f"{OLDEST_OPSET}; export the model again with a newer opset"
            )
    waiting = [onnx.helper.make_node(n.op_type, n.input, n.output, domain=LIFTED) for n in bound.values()]
    stubs = dict(zip(bound, waiting, strict=True))
    graph = onnx.helper.make_graph(
        [stubs.get(node.output[0], node) for node in function.node],
        function.name,
        [onnx.ValueInfoProto(name=name) for name in function.input],
        [onnx.ValueInfoProto(name=name) for name in function.output],
    )
    opsets = function.opset_import
    body = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=proto.ir_version)
    lifted = onnx.FunctionProto()
    lifted.CopyFrom(function)
    _replace(lifted.node, [bound.get(node.output[0], node) for node in _lifted(body, version).graph.node])
    for opset in lifted.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = OLDEST_OPSET
    return lifted


def _is_compatible(node: onnx.NodeProto, version: int) -> bool:
    """Whether a node means the same at opset 18 as it stands."""
    if node.domain not in ("", "ai.onnx"):
        return True
    known = onnx.defs.get_schema(node.op_type, OLDEST_OPSET).attributes
    return adapter(node, version) is None and all(attribute.name in known for attribute in node.attribute)


def _convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(proto, version)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ModelError(
            f"the model uses opset {opset_of(proto)} and cannot be converted to {version}: {error}; "
            "export it again with a newer opset"
        ) from error


def _adapted(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy of `proto`, what the converter gets wrong replaced by nodes of opset 18 in their own domain."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.opset_import.append(onnx.helper.make_opsetid(LIFTED, 1))
    copy = onnx.shape_inference.infer_shapes(copy)
    _adapt(copy.graph, Scope(version, {}, {}))
    return copy


def _adapt(graph: onnx.GraphProto, outer: Scope) -> None:
    scope = _inside(graph, outer)
    nodes = []
    for node in graph.node:
        for inner in _subgraphs(node):
            _adapt(inner, scope)
        adapt = adapter(node, scope.opset)
        for lifted in adapt(node, scope) if adapt else ():
            lifted.domain = LIFTED
            nodes.append(lifted)
        if adapt is None:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    _replace(graph.node, nodes)


def _inside(graph: onnx.GraphProto, outer: Scope) -> Scope:
    """What is known inside of `graph`, which sees the values outside."""
    types, constants = dict(outer.types), dict(outer.constants)
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type
        constants.pop(value.name, None)
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        constants[tensor.name] = tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    return Scope(outer.opset, types, constants)


def _enter_default_domain(lifted: onnx.ModelProto) -> None:
    graphs = [lifted.graph]
    for graph in graphs:
        for node in graph.node:
            graphs.extend(_subgraphs(node))
            if node.domain == LIFTED:
                node.domain = ""
    _replace(lifted.opset_import, [opset for opset in lifted.opset_import if opset.domain != LIFTED])


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _restore(lifted: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Put back what the converter loses: annotations, node metadata, functions, model properties."""
    # The converter turns an output of unknown rank into a scalar.
    for name in ("input", "output", "value_info"):
        _replace(getattr(lifted.graph, name), getattr(original.graph, name))
    _replace(lifted.functions, original.functions)
    _replace(lifted.metadata_props, original.metadata_props)
    by_output = {node.output[0]: node for node in original.graph.node if node.output}
    for node in lifted.graph.node:
        before = by_output.get(node.output[0]) if node.output else None
        if before is not None and before.op_type == node.op_type:
            _replace(node.metadata_props, before.metadata_props)
            node.doc_string = before.doc_string


def _replace(target: object, source: object) -> None:
    del target[:]  # type: ignore[attr-defined]
    target.extend(source)  # type: ignore[attr-defined]
