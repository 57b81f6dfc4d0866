"""Dropout with a mask that depends on a seed."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import ModelError
from onnx_grad.layers.masks import Ratio, kept, shaped_like

# Of a node that names none.
_DEFAULT_RATIO = 0.5


def activate_dropout(op: Builder, node: ir.Node, seed: ir.Value, ratio: float | None) -> list[ir.Value]:
    """y = x·mask/(1 − ratio), where the mask keeps an element with probability 1 − ratio.

    Args:
        op: Builds the nodes.
        node: A `Dropout` node.
        seed: A scalar int64; the mask depends on it and on the name of the node.
        ratio: The probability of being dropped; `None` for that of the node.

    Returns:
        What takes the place of the outputs of `node`.

    Raises:
        ModelError: The ratio of the node is no probability.
    """
    x = known.operand(node, 0)
    chosen = _ratio(op, node, x) if ratio is None else Ratio.of_number(op, ratio, x)
    mask = kept(op, x, seed, str(node.name), chosen)
    op.label(mask, f"{node.name}/kept")
    factor = shaped_like(op, op.CastLike(mask, x) * chosen.gain, x)
    op.label(factor, f"{node.name}/factor")
    results = [op.Mul(x, factor)]
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        results.append(shaped_like(op, mask, x))
    return results


def _ratio(op: Builder, node: ir.Node, x: ir.Value) -> Ratio:
    given = known.optional_operand(node, 1)
    if given is None:
        return Ratio.of_number(op, _DEFAULT_RATIO, x)
    content = known.constant(given)
    if content is None:
        return Ratio.of_value(op, given, x)
    number = float(content.item())
    if not 0.0 <= number <= 1.0:
        raise ModelError(
            f"node '{node.name}' is a Dropout with a ratio of {number:g}, which is no probability; "
            "give another with dropout="
        )
    return Ratio.of_number(op, number, x)
