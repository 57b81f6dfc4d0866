"""Where ONNX Runtime keeps images in a blocked layout on CPUs: between convolutions of constant weights."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.filters import is_constant


def is_between_convolutions(op: Builder, node: ir.Node) -> bool:
    """Whether a mask for the elementwise `node` is best made in the layout of the convolutions around it.

    Its operand comes from one, and so does that operand's tangent. For the cotangent to come from one, its
    result has to go to convolutions only.
    """
    (y,) = node.outputs
    if y.dtype != ir.DataType.FLOAT or known.rank(y) != 4:
        return False
    producer = known.operand(node, 0).producer()
    if producer is None or not _is_blocked(producer):
        return False
    return op.pushes or all(_is_blocked(user) for user in y.consumers() if user.graph is not None)


def _is_blocked(node: ir.Node) -> bool:
    return node.op_type == "Conv" and node.domain == "" and is_constant(known.operand(node, 1))
