"""Replacing calls of functions by their bodies, where no rule differentiates the call itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import onnx
from onnx.inliner import inline_selected_functions

from onnx_grad import registry
from onnx_grad.errors import ModelError
from onnx_grad.registry import State

# Where the bodies of the specification live for as long as they are inlined.
_DOMAIN = "onnx_grad.expansion"


def expand_local_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the calls of model-local functions inlined, save those that have a rule."""
    callees = [
        (function.domain, function.name)
        for function in proto.functions
        if registry.lookup(function.domain, function.name).state is not State.RULE
    ]
    return _inline(proto, callees) if callees else proto


def expand_nodes(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """`proto` with the nodes of the given names replaced by their operators' function bodies.

    Args:
        proto: A model whose values all have known types; some bodies depend on them.
        names: Names of default-domain nodes whose operators the specification defines by a function.
    """
    version = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    types = dict(_types(proto.graph))
    local = onnx.ModelProto()
    local.CopyFrom(proto)
    local.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    callees: list[tuple[str, str]] = []
    for node in local.graph.node:
        if node.name in names:
            function = _body(node, version, types)
            function.domain, function.name = _DOMAIN, f"{node.op_type}_{len(callees)}"
            local.functions.append(function)
            callees.append((function.domain, function.name))
            node.domain, node.op_type = function.domain, function.name
    expanded = _inline(local, callees)
    kept = [opset for opset in expanded.opset_import if opset.domain != _DOMAIN]
    del expanded.opset_import[:]
    expanded.opset_import.extend(kept)
    return expanded


def _body(node: onnx.NodeProto, version: int, types: dict[str, onnx.TypeProto]) -> onnx.FunctionProto:
    """The function body of a node's operator; attributes left out get their defaults on the node."""
    schema: Any = onnx.defs.get_schema(node.op_type, version)
    if schema.has_function:
        since = max(v for v in schema.function_opset_versions if v <= version)
        content = schema.get_function_with_opset_version(since)
    else:
        versions = schema.context_dependent_function_opset_versions
        since = max(v for v in versions if v <= version)
        given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        content = schema.get_context_dependent_function_with_opset_version(
            since, node.SerializeToString(), given
        )
    function: onnx.FunctionProto = onnx.FunctionProto.FromString(content)
    if not function.node:
        raise ModelError(
            f"{node.op_type} node '{node.name}' has no rule, and its function body in the ONNX specification "
            "depends on shapes or types of inputs that are not known; declare them in the model's value_info"
        )
    # The specification keeps a body valid for later versions, as long as it gives no new one.
    for opset in function.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = version
    present = {attribute.name for attribute in node.attribute}
    for name in function.attribute:
        default = schema.attributes[name].default_value
        if name not in present and default.name:
            node.attribute.append(default)
    return function


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TypeProto]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        yield value.name, value.type
    for tensor in graph.initializer:
        yield tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)


def _inline(proto: onnx.ModelProto, callees: list[tuple[str, str]]) -> onnx.ModelProto:
    try:
        return inline_selected_functions(proto, callees)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        names = ", ".join(f"'{name}'" for _, name in callees)
        raise ModelError(f"cannot expand the functions {names}: {error}") from error
