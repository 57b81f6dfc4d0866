"""Integers that stand for real numbers: what operators whose rules are for floats do with them.

The derivative of `Reshape`, `MaxPool` or `Clip` of quantised numbers is that of the same operator on floats.
So such a node is differentiated as if its integers had been converted first; of the conversion, only what the
rule reads becomes part of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder


def on_floats(op: Builder, node: ir.Node) -> Sequence[ir.Value | None]:
    """The results of `node` on floats in the place of integers, wherever its operator takes floats."""
    operands = [
        op.Cast(value, to=known.ROUNDED_COTANGENT)
        if value is not None and known.may_be_rounded(value) and takes_floats(node, index)
        else value
        for index, value in enumerate(node.inputs)
    ]
    attributes: dict[str, Any] = dict(node.attributes)
    results = op.node(node.op_type, *operands, outputs=len(node.outputs), domain=node.domain, **attributes)
    return [result if gives_floats(node, index) else None for index, result in enumerate(results)]


def has_schema(node: ir.Node) -> bool:
    """Whether it is known which types the operator takes."""
    return onnx.defs.has(node.op_type, node.domain)


def takes_floats(node: ir.Node, index: int) -> bool:
    """Whether an input may be of a float type: data may, an index or a shape may not."""
    return not has_schema(node) or _at(index, _float_formals(node.op_type, node.domain)[0])


def gives_floats(node: ir.Node, index: int) -> bool:
    """Whether an output may be of a float type: a maximum may, its position may not."""
    return not has_schema(node) or _at(index, _float_formals(node.op_type, node.domain)[1])


def _at(index: int, formals: Sequence[bool]) -> bool:
    """The last formal of a variadic operator stands for all further ones."""
    return formals[min(index, len(formals) - 1)]


@functools.cache
def _float_formals(op_type: str, domain: str) -> tuple[list[bool], list[bool]]:
    """Which inputs and which outputs of an operator may be of a float type, or hold such tensors."""
    schema = onnx.defs.get_schema(op_type, domain=domain)
    inputs, outputs = (
        [any("tensor(float)" in kind for kind in formal.types) for formal in formals]
        for formals in (schema.inputs, schema.outputs)
    )
    return inputs, outputs
