"""Branches: If."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import ModelError
from onnx_grad.registry import Flow, structural_gradient
from onnx_grad.rules.bodies import Keeper
from onnx_grad.rules.keeping import BackwardBody
from onnx_grad.wiring import body

_BRANCHES = ("then_branch", "else_branch")


@structural_gradient("If")
def if_(
    op: Builder, node: ir.Node, flow: Flow, cotangents: Sequence[ir.Value | None]
) -> list[tuple[ir.Value, ir.Value]]:
    """y = f(x) where the condition holds, else g(x): dx = f'(x)ᵀ·dy where it holds, else g'(x)ᵀ·dy.

    The gradient is an `If` on the same condition, so only the taken branch computes. What it needs of the
    forward branch is kept, as it would be without the `If`: the forward node gives it out, and nothing of it
    for the branch that was not taken. A tensor that a branch does not read gets zeros from it.
    """
    forward = [body(node, name) for name in _BRANCHES]
    builders = [op.for_body(node) for _ in _BRANCHES]
    pulled = [
        flow.pull_back(inner, branch, _seeds(branch, flow, cotangents))
        for inner, branch in zip(builders, forward, strict=True)
    ]
    reached = [x for x in flow.captured if any(x in branch for branch in pulled)]
    if not reached:
        return []
    backward = [
        BackwardBody(inner, branch, [found[x] if x in found else inner.zeros_like(x) for x in reached])
        for inner, branch, found in zip(builders, forward, pulled, strict=True)
    ]
    keeper = Keeper(op, node)
    kept = [_keep(op, keeper, position, body.everything()) for position, body in enumerate(backward)]
    graphs: dict[str, Any] = {
        name: body.graph([], available, f"{node.name}/{name}_gradient")
        for name, body, available in zip(_BRANCHES, backward, kept, strict=True)
    }
    results = op.node("If", node.inputs[0], outputs=len(reached), shared=False, **graphs)
    for x, dx in zip(reached, results, strict=True):
        dx.type, dx.shape = x.type, x.shape
    return list(zip(reached, results, strict=True))


def _seeds(
    branch: ir.Graph, flow: Flow, cotangents: Sequence[ir.Value | None]
) -> list[tuple[ir.Value, ir.Value]]:
    return [
        (y, dy)
        for y, dy in zip(branch.outputs, cotangents, strict=False)
        if dy is not None and flow.is_active(y)
    ]


def _keep(op: Builder, keeper: Keeper, position: int, values: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Outputs of the forward node that hold `values` of one of its branches, when that one is taken."""
    branches = [body(keeper.node, name) for name in _BRANCHES]
    taken, other = branches[position], branches[1 - position]
    available = {}
    for value in values:
        result = keeper.counterpart(value)
        if result in taken.outputs:
            available[value] = keeper.node.outputs[list(taken.outputs).index(result)]
            continue
        keeper.give_out(taken, result)
        _give_out_nothing(op, other, value)
        available[value] = keeper.add_output(value)
    return available


def _give_out_nothing(op: Builder, branch: ir.Graph, like: ir.Value) -> None:
    """Make an empty tensor one more output of `branch`."""
    if like.dtype is None:
        raise ModelError(f"the type of '{like.name}' is unknown; declare it in the model's value_info")
    empty = np.zeros([0] * (known.rank(like) or 1), like.dtype.numpy())
    node = ir.Node(
        "",
        "Constant",
        [],
        [ir.AttrTensor("value", ir.Tensor(empty, dtype=like.dtype))],
        name=op.unique_name(f"{like.name}/nothing"),
    )
    node.outputs[0].name = node.name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(like.dtype), ir.Shape(empty.shape)
    branch.append(node)
    branch.outputs.append(node.outputs[0])
