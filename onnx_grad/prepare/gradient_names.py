"""Names of tensors in attributes of `Gradient`, kept right where functions of the model are inlined.

Inlining gives the tensors of a function new names, and knows nothing of those in attributes. So while it is
done, a `Gradient` in a function reads the tensors that it names as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx.defs import AI_ONNX_PREVIEW_TRAINING_DOMAIN as DOMAIN

from onnx_grad.errors import ModelError, UnknownNameError
from onnx_grad.prepare.expand import inline
from onnx_grad.prepare.validate import all_nodes

_READS_NAMES = "onnx_grad.reads_names"


def inline_training_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the calls of functions inlined that hold a training operator, or call one that does.

    Raises:
        UnknownNameError: A `Gradient` in a function names a tensor that it does not see.
    """
    holding = _holding(proto)
    if not holding:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for function in copy.functions:
        if (function.domain, function.name) in holding:
            _read_names(function.node, {*function.input})
            _import_domain(copy, function)
    inlined: onnx.ModelProto = inline(copy, sorted(holding))
    for node in all_nodes(inlined.graph):
        if node.domain == DOMAIN:
            _name_what_is_read(node)
    kept = [f for f in inlined.functions if (f.domain, f.name) not in holding]
    del inlined.functions[:]
    inlined.functions.extend(kept)
    return inlined


def _holding(proto: onnx.ModelProto) -> set[tuple[str, str]]:
    called = {
        (function.domain, function.name): {
            (node.domain, node.op_type) for node in all_nodes(onnx.GraphProto(node=function.node))
        }
        for function in proto.functions
    }
    holding = {name for name, nodes in called.items() if any(domain == DOMAIN for domain, _ in nodes)}
    while more := {name for name, nodes in called.items() if name not in holding and nodes & holding}:
        holding |= more
    return holding


def _import_domain(proto: onnx.ModelProto, function: onnx.FunctionProto) -> None:
    if all(opset.domain != DOMAIN for opset in proto.opset_import):
        proto.opset_import.extend(opset for opset in function.opset_import if opset.domain == DOMAIN)


def _read_names(nodes: object, visible: set[str]) -> None:
    """Let each `Gradient` among `nodes`, and in their bodies, read what it names after its inputs."""
    seen = set(visible)
    for node in nodes:  # type: ignore[attr-defined]
        for body in _bodies(node):
            _read_names(body.node, {*seen, *(v.name for v in (*body.input, *body.initializer))})
        if node.domain == DOMAIN and node.op_type == "Gradient":
            names = list(_named(node))
            for name in names:
                if name not in seen:
                    raise UnknownNameError.near(f"Gradient node '{node.name}' in a function", name, seen)
            node.input.extend(names)
            node.attribute.append(onnx.helper.make_attribute(_READS_NAMES, len(names)))
        seen.update(node.output)


def _name_what_is_read(node: onnx.NodeProto) -> None:
    """Put the names of what a `Gradient` reads beyond its inputs back into its attributes."""
    marks = [a for a in node.attribute if a.name == _READS_NAMES]
    if not marks:
        return
    node.attribute.remove(marks[0])
    names = iter(node.input[len(node.input) - marks[0].i :])
    for attribute in _naming(node):
        if attribute.name == "y":
            attribute.s = next(names).encode()
        else:
            attribute.strings[:] = [next(names).encode() for _ in attribute.strings]
    del node.input[len(node.input) - marks[0].i :]


def _named(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in _naming(node):
        if attribute.ref_attr_name:
            raise ModelError(
                f"Gradient node '{node.name}' in a function takes '{attribute.name}' from the caller, whose "
                "names of tensors mean nothing in the function; write the names into the node"
            )
        names = (attribute.s,) if attribute.name == "y" else attribute.strings
        yield from (name.decode() for name in names)


def _naming(node: onnx.NodeProto) -> Iterator[onnx.AttributeProto]:
    yield from (attribute for attribute in node.attribute if attribute.name in ("xs", "zs", "y"))


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
