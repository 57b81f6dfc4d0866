"""Which nodes can be computed twice."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import RANDOM_OPERATORS
from onnx_grad.wiring import bodies

# Operators of ONNX Runtime's own that depend on their operands alone, and keep nothing.
_STATELESS = frozenset(
    "BiasGelu FastGelu FusedConv FusedGemm FusedMatMul Gelu QuickGelu SimplifiedLayerNormalization "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization".split()
)


def obstacle(node: ir.Node) -> str | None:
    """Why what `node` gives has to be kept: why it cannot be computed a second time; `None` if it can."""
    if is_random(node):
        return f"{node.op_type} is random, and a second run would give another result"
    if node.domain != "" and (node.domain != "com.microsoft" or node.op_type not in _STATELESS):
        operator = f"{node.domain}.{node.op_type}"
        return f"{operator} is no standard operator, and a second run might give another result"
    if next(bodies(node), None) is not None:
        return f"{node.op_type} holds a graph, which is not computed twice"
    for value in (*node.inputs, *node.outputs):
        if value is None or not value.name:
            continue
        if not isinstance(value.type, ir.TensorType):
            kind = "of unknown type" if value.type is None else f"a {value.type}"
            return f"'{value.name}' is {kind}, and only tensors are computed twice"
    return None


def is_random(node: ir.Node) -> bool:
    """Whether two runs of `node` on the same operands may differ."""
    if node.domain != "" or node.op_type not in RANDOM_OPERATORS:
        return False
    if node.op_type != "Dropout":
        return True
    training = known.optional_operand(node, 2)
    content = known.constant(training)
    return training is not None and (content is None or bool(content.any()))
