"""A Relu that only a MaxPool reads: its mask is applied behind the pooling, where there is less of it."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import registry
from onnx_grad.builder import Builder


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
    return relu.op_type == "Relu" and relu.domain == "" and _only_reader(relu) is pool and _are_ours()


def is_masked_by_its_pool(op: Builder, relu: ir.Node) -> bool:
    """Whether what is pulled back to `relu`, or pushed on from it, is masked by the rule of a MaxPool."""
    reader = _only_reader(relu)
    if reader is None or reader.op_type != "MaxPool" or reader.domain != "":
        return False
    return pools_a_relu(op, reader)


def _are_ours() -> bool:
    """Whether neither of the rules was replaced by a user's, which knows nothing of a shared mask."""
    return registry.has_own_rule("Relu") and registry.has_own_rule("MaxPool")


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one forward node that reads the result of `node`, in the same graph; `None` where it is not so."""
    readers = [user for user in node.outputs[0].consumers() if user.graph is not None]
    return readers[0] if len(readers) == 1 and readers[0].graph is node.graph else None
