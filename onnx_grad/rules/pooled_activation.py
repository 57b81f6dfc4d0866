"""A Relu that only a MaxPool reads: its mask is applied behind the pooling, where there is less of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import onnx_ir as ir

from onnx_grad import registry
from onnx_grad.builder import Builder
from onnx_grad.registry import Quantization, Rule

# The rules that agree on where the mask is applied, by operator.
_AGREED: dict[str, Rule] = {}


def shares_mask(op_type: str) -> Callable[[Rule], Rule]:
    """Note that the decorated rule of an operator asks the functions below."""

    def note(rule: Rule) -> Rule:
        _AGREED[op_type] = rule
        return rule

    return note


def pools_a_relu(op: Builder, pool: ir.Node) -> bool:
    """Whether the MaxPool `pool` is the only reader of a Relu: then its rule applies the mask of that.

    A maximum is positive where the element that it comes from is. So the cotangent of the maximum is masked
    instead of that of the element, if nobody gives or asks for what is between the two. The same goes for
    tangents, whose formula is this one transposed.
    """
    x = pool.inputs[0]
    relu = None if x is None else x.producer()
    if x is None or relu is None or op.asked_for is None or x in op.asked_for:
        return False
    return relu.op_type == "Relu" and relu.domain == "" and _only_reader(relu) is pool and _are_in_force()


def is_masked_by_its_pool(op: Builder, relu: ir.Node) -> bool:
    """Whether what is pulled back to `relu`, or pushed on from it, is masked by the rule of a MaxPool."""
    reader = _only_reader(relu)
    if reader is None or reader.op_type != "MaxPool" or reader.domain != "":
        return False
    return pools_a_relu(op, reader)


def _are_in_force() -> bool:
    """Whether neither of the rules was replaced by a user's, which knows nothing of a shared mask."""
    return all(
        registry.lookup("", op_type, quantization=choice).rule is rule
        for op_type, rule in _AGREED.items()
        for choice in (None, *get_args(Quantization))
    )


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one forward node that reads the result of `node`, in the same graph; `None` where it is not so."""
    readers = [user for user in node.outputs[0].consumers() if user.graph is not None]
    return readers[0] if len(readers) == 1 and readers[0].graph is node.graph else None
