"""Shapes and types of the results of operators of which onnx's inference knows nothing.

These are ONNX Runtime's own, and the standard's `Gradient`.

While shapes are inferred, each such node calls a model-local function of the name of its operator, whose body
gives the shapes and types that the operator gives, and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx

from onnx_grad.prepare.contrib_bodies import BODIES
from onnx_grad.prepare.validate import all_nodes, opset_of


def infer_shapes(
    proto: onnx.ModelProto, *, strict_mode: bool = False, data_prop: bool = False
) -> onnx.ModelProto:
    """A copy of `proto` with the shapes and types that onnx infers, across those operators as well.

    Raises:
        onnx.shape_inference.InferenceError: In strict mode, the operators do not fit together.
    """
    infer = functools.partial(onnx.shape_inference.infer_shapes, strict_mode=strict_mode, data_prop=data_prop)
    calling = _with_calls(proto)
    if calling is None:
        return infer(proto)
    try:
        inferred = infer(calling)
    except onnx.shape_inference.InferenceError:
        # What a body takes for granted need not hold; and if the model is wrong, this tells.
        return infer(proto)
    del inferred.functions[len(proto.functions) :], inferred.opset_import[len(proto.opset_import) :]
    for node, original in zip(all_nodes(inferred.graph), all_nodes(proto.graph), strict=True):
        if node.overload != original.overload:
            node.CopyFrom(original)
    return inferred


def _with_calls(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of `proto` where such operators are model-local functions, `None` where there are none."""
    local = {(function.domain, function.name) for function in proto.functions}
    if not any(_has_body(node, local) for node in all_nodes(proto.graph)):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.opset_import.add(domain=_STAND_IN, version=1)
    overloads: dict[str, str] = {}
    for node in all_nodes(copy.graph):
        if _has_body(node, local):
            lines = BODIES[node.domain, node.op_type](node)
            if onnx.defs.has(node.op_type, node.domain):
                node.domain = _STAND_IN
            text = _text(node, lines, opset_of(proto) or 1)
            if text not in overloads:
                function = copy.functions.add()
                function.CopyFrom(_parsed(text))
                function.overload = overloads[text] = str(len(overloads))
            node.overload = overloads[text]
    return copy


# The domain of operators whose schema gives no shapes, and would come before a function.
_STAND_IN = "onnx_grad.stand_in"


def _has_body(node: onnx.NodeProto, local: set[tuple[str, str]]) -> bool:
    return (node.domain, node.op_type) in BODIES and (node.domain, node.op_type) not in local


def _text(node: onnx.NodeProto, lines: Iterator[str], opset: int) -> str:
    """The function that `node` is to call: its inputs are x0, x1, … and its outputs are y0, y1 and so on."""
    inputs, outputs = (
        ", ".join(f"{letter}{index}" for index in range(len(names)))
        for letter, names in (("x", node.input), ("y", node.output))
    )
    body = "\n".join(lines)
    return (
        f'<domain: "{node.domain}", opset_import: ["": {opset}]> '
        f"{node.op_type} ({inputs}) => ({outputs}) {{ {body} }}"
    )


@functools.cache
def _parsed(text: str) -> onnx.FunctionProto:
    return onnx.parser.parse_function(text)
