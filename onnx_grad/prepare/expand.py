"""Replacing calls of functions by their bodies, where no rule differentiates the call itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import onnx
from onnx.inliner import inline_selected_functions

from onnx_grad import registry
from onnx_grad.errors import ModelError
from onnx_grad.prepare.attention import attention
from onnx_grad.prepare.body import Body
from onnx_grad.prepare.causal_convolution import causal_convolution
from onnx_grad.prepare.validate import all_nodes, opset_of
from onnx_grad.registry import State

# Where bodies of operators live for as long as they are functions of a model.
DOMAIN = "onnx_grad.expansion"


def expand_local_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the calls of model-local functions inlined, save those that have a rule."""
    callees = [
        (function.domain, function.name)
        for function in proto.functions
        if registry.lookup(function.domain, function.name).state is not State.RULE
    ]
    return inline(proto, callees) if callees else proto


def expand_nodes(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """`proto` with the nodes of the given names replaced by their operators' function bodies.

    Args:
        proto: A model whose values all have known types; some bodies depend on them.
        names: Names of nodes whose operators are functions: of the model, of the specification, or defined by
            the user.
    """
    calling, callees = call_bodies(proto, lambda node: node.name in names, dict(types_of(proto.graph)))
    expanded = inline(calling, callees)
    kept = [opset for opset in expanded.opset_import if opset.domain != DOMAIN]
    del expanded.opset_import[:]
    expanded.opset_import.extend(kept)
    return expanded


def call_bodies(
    proto: onnx.ModelProto, chosen: Callable[[onnx.NodeProto], bool], types: Mapping[str, onnx.TypeProto]
) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
    """A copy of `proto` whose chosen nodes call model-local functions: their operators' bodies.

    Args:
        proto: The model.
        chosen: Whether to replace a node.
        types: The types of the model's values, as far as they are known.

    Returns:
        The copy, and domain and name of every such function.
    """
    version = opset_of(proto) or 0
    local = onnx.ModelProto()
    local.CopyFrom(proto)
    local.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    # The checker has made sure that their operators mean the same in the opset of the model.
    for function in local.functions:
        for opset in function.opset_import:
            if opset.domain in ("", "ai.onnx") and version:
                opset.version = version
    callees: list[tuple[str, str]] = []
    for node in all_nodes(local.graph):
        if chosen(node):
            function = (
                _local_body(node, local)
                or _defined_body(node, proto)
                or _own_body(node, version, types)
                or _specified_body(node, version, types)
            )
            _import_domains(local, function)
            node.overload = function.overload = ""
            function.domain, function.name = DOMAIN, f"{node.op_type}_{len(callees)}"
            local.functions.append(function)
            callees.append((function.domain, function.name))
            node.domain, node.op_type = function.domain, function.name
    return local, callees


def _local_body(node: onnx.NodeProto, proto: onnx.ModelProto) -> onnx.FunctionProto | None:
    """A copy of the function of the model that `node` calls."""
    called = (node.domain, node.op_type, node.overload)
    for function in proto.functions:
        if (function.domain, function.name, function.overload) == called:
            copy: onnx.FunctionProto = onnx.FunctionProto.FromString(function.SerializeToString())
            return copy
    return None


def _defined_body(node: onnx.NodeProto, proto: onnx.ModelProto) -> onnx.FunctionProto | None:
    """A copy of the function that a user defined the operator of `node` by."""
    function = registry.lookup(node.domain, node.op_type).function
    return None if function is None else _at_opset(function, opset_of(proto))


def _at_opset(function: onnx.FunctionProto, version: int | None) -> onnx.FunctionProto:
    """A copy of `function` for a model at opset `version`.

    Raises:
        ModelError: One of its operators means something else there.
    """
    copy: onnx.FunctionProto = onnx.FunctionProto.FromString(function.SerializeToString())
    for opset in copy.opset_import:
        if opset.domain not in ("", "ai.onnx") or version is None:
            continue
        for node in all_nodes(onnx.GraphProto(node=function.node)):
            if node.domain in ("", "ai.onnx") and _since(node, opset.version) != _since(node, version):
                raise ModelError(
                    f"function '{function.name}' is written for opset {opset.version} and the model for "
                    f"{version}, and {node.op_type} differs between them; write the function for the model's"
                )
        opset.version = version
    return copy


def _since(node: onnx.NodeProto, version: int) -> int:
    """The version of the node's operator in an opset; 0 where that has none."""
    try:
        return int(onnx.defs.get_schema(node.op_type, version).since_version)
    except onnx.defs.SchemaError:
        return 0


def _import_domains(proto: onnx.ModelProto, function: onnx.FunctionProto) -> None:
    """Make the model import what the body of one of its functions imports."""
    imported = {"" if opset.domain == "ai.onnx" else opset.domain for opset in proto.opset_import}
    for opset in function.opset_import:
        if opset.domain not in (*imported, "ai.onnx"):
            proto.opset_import.append(opset)


def _own_body(
    node: onnx.NodeProto, version: int, types: Mapping[str, onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function body that we write ourselves, for the operators that have one."""
    write = _WRITERS.get(node.op_type)
    if write is None:
        return None
    body = Body(node, version, types)
    if not body.element_type(0):
        raise _needs_types(node)
    return body.function(write(body))


_WRITERS = {"Attention": attention, "CausalConvWithState": causal_convolution}


def _specified_body(
    node: onnx.NodeProto, version: int, types: Mapping[str, onnx.TypeProto]
) -> onnx.FunctionProto:
    """The function body in the specification; attributes left out get their defaults on the node."""
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
        raise _needs_types(node)
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


def _needs_types(node: onnx.NodeProto) -> ModelError:
    return ModelError(
        f"{node.op_type} node '{node.name}' has no rule, and its function body depends on shapes or types of "
        "inputs that are not known; declare them in the model's value_info"
    )


def types_of(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TypeProto]]:
    """Every value of `graph` and of its bodies with its type, as far as it is annotated."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        yield value.name, value.type
    for tensor in graph.initializer:
        yield tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from types_of(body)


def inline(proto: onnx.ModelProto, callees: list[tuple[str, str]]) -> onnx.ModelProto:
    """`proto` with the calls of the given functions, by domain and name, replaced by their bodies."""
    try:
        return inline_selected_functions(proto, callees)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        names = ", ".join(f"'{name}'" for _, name in callees)
        raise ModelError(f"cannot expand the functions {names}: {error}") from error
