"""The table of batching rules: how an operator computes a whole batch of examples at once.

A batched value has the batch axis in front: for an example of shape s, its shape is [B, *s]. Negative axes
mean the same in it, axes from 0 on are one further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad.batching.operands import Operands
from onnx_grad.builder import Builder

Result = ir.Value | Sequence[ir.Value | None] | None
Rule = Callable[[Builder, ir.Node, Operands], Result]


@dataclass(frozen=True)
class Entry:
    """What is declared of an operator.

    Attributes:
        rule: Builds the batched results; `None` for an operator that runs in a `Scan`, example by example.
        shape_only: Positions of the inputs of which the operator reads the shape or the type only. It is the
            same for all examples, so that a result of those alone is too.
        sizes: Positions of the inputs that determine the shape of a result.
        refused: Why the operator cannot be batched at all.
        refuses: Tells of a node and the positions of its batched inputs why that form cannot be batched.
    """

    rule: Rule | None = None
    shape_only: frozenset[int] = frozenset()
    sizes: frozenset[int] = frozenset()
    refused: str | None = None
    refuses: Callable[[ir.Node, frozenset[int]], str | None] | None = None


_table: dict[tuple[str, str], Entry] = {}

_UNDECLARED = Entry()


def batching(
    *op_types: str,
    shape_only: Sequence[int] = (),
    sizes: Sequence[int] = (),
    refuses: Callable[[ir.Node, frozenset[int]], str | None] | None = None,
    domain: str = "",
) -> Callable[[Rule], Rule]:
    """Register the decorated function as the batching rule of operators.

    The rule is called as `rule(op, node, x)`: `op` builds nodes, `node` is the node for one example, and `x`
    has its operands: `x[i]` is the batched counterpart of input `i` where it is batched, else the value that
    all examples share. It returns the batched result, or one for each output; `None` for the whole says that
    it has no better way for this form than a `Scan` over the examples.

    Args:
        *op_types: Their types.
        shape_only: Positions of the inputs of which only the shape or the type matters. Of a node whose
            batched inputs are all among them, the rule gives the result that all examples share.
        sizes: Positions of the inputs that determine the shape of a result: they may not differ between
            examples, save where the shape is known to be the same.
        refuses: Tells of a node and the positions of its batched inputs why it cannot be batched, or `None`.
        domain: Their domain.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            _table[domain, op_type] = Entry(
                rule, shape_only=frozenset(shape_only), sizes=frozenset(sizes), refuses=refuses
            )
        return rule

    return register


def runs_in_scan(*op_types: str, sizes: Sequence[int] = ()) -> None:
    """Declare operators that a `Scan` runs example by example.

    Args:
        *op_types: Their types.
        sizes: As for `batching`.
    """
    for op_type in op_types:
        _table["", op_type] = Entry(sizes=frozenset(sizes))


def refused(*op_types: str, reason: str) -> None:
    """Declare operators that cannot be batched.

    Args:
        *op_types: Their types.
        reason: Why, and what to do instead.
    """
    for op_type in op_types:
        _table["", op_type] = Entry(refused=reason)


def lookup(node: ir.Node) -> Entry:
    """What is declared of the operator of `node`: nothing, of one that runs in a `Scan`."""
    return _table.get((_domain(node.domain), node.op_type), _UNDECLARED)


def is_declared(op_type: str, domain: str = "") -> bool:
    """Whether anything is declared of an operator."""
    return (_domain(domain), op_type) in _table


def operators() -> dict[tuple[str, str], Entry]:
    """Everything that is declared, by (domain, operator type)."""
    return dict(_table)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
