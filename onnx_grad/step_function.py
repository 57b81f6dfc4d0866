"""The unit step, 1 for positive numbers and 0 for others, by arithmetic that stays with convolutions.

A comparison or a `Cast` makes a mask too, but ONNX Runtime takes a tensor out of the blocked layout of its
convolutions for them, and puts the product with the mask back into it. It does not for `HardSigmoid`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import METADATA_PREFIX, Builder

# The steepest slope there is takes all positive numbers to 1 but the smallest, of 3·10⁻³⁹ and less.
_STEEPEST = float(np.finfo(np.float32).max)


def unit_step(op: Builder, value: ir.Value) -> ir.Value:
    """1 where the float32 `value` is positive, 0 where it is not: min(1, max(0, α·value)), twice.

    Once leaves the smallest numbers between 0 and 1, from where the second time takes them to 1: the smallest
    of all, 2⁻¹⁴⁹, to 5·10⁻⁷ first.
    """
    for _ in range(2):
        value = op.HardSigmoid(value, alpha=_STEEPEST, beta=0.0)
    return value


def is_unit_step(node: ir.Node) -> bool:
    """Whether `node` is one of those, rather than a `HardSigmoid` of the model that was differentiated."""
    return (
        node.op_type == "HardSigmoid"
        and node.domain == ""
        and node.attributes.get_float("alpha", 0.0) == _STEEPEST
        and any(key.startswith(METADATA_PREFIX) for key in node.metadata_props)
    )
