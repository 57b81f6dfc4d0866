"""Which values differ between the examples of a batch, and which nodes cannot compute those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.registry import lookup
from onnx_grad.errors import UnsupportedOpError
from onnx_grad.wiring import Wiring, bodies, iteration, wiring


def dependents(nodes: Iterable[ir.Node], batched: Iterable[ir.Value]) -> set[ir.Value]:
    """The `batched` values and all that `nodes`, and the bodies in them, compute from those.

    What depends on the shape of a batched value only is not among them: it is the same for all examples.
    """
    marked = set(batched)
    _spread(nodes, marked)
    return marked


def is_sequential(node: ir.Node, marked: set[ir.Value]) -> bool:
    """Whether the way through an `If`, `Loop` or `Scan` differs between the examples."""
    return any(value in marked for value in _deciding(node))


def check_batchable(nodes: Iterable[ir.Node], marked: set[ir.Value]) -> None:
    """Check that all nodes with batched operands can be batched.

    Raises:
        UnsupportedOpError: Some cannot; all of them are named.
    """
    found = list(refusals(nodes, marked))
    if found:
        lines = [f"  node '{node.name}' ({node.op_type}): {reason}" for node, reason in found]
        raise UnsupportedOpError(
            f"{len(found)} node(s) that depend on what is mapped cannot be batched:\n" + "\n".join(lines)
        )


def _spread(nodes: Iterable[ir.Node], marked: set[ir.Value]) -> None:
    for node in nodes:
        wires = wiring(node)
        if wires is not None:
            _spread_through_bodies(node, wires, marked)
            continue
        ignored = lookup(node).shape_only
        read = [v for i, v in enumerate(node.inputs) if v is not None and i not in ignored]
        if any(value in marked for value in (*read, *known.captured_values(node))):
            marked.update(node.outputs)


def _spread_through_bodies(node: ir.Node, wires: Wiring, marked: set[ir.Value]) -> None:
    """Until a further iteration adds nothing."""
    before = -1
    while before != len(marked):
        before = len(marked)
        marked.update(target for source, target in wires.entering if source in marked)
        for body in wires.bodies:
            _spread(body, marked)
        marked.update(target for source, target in wires.returning if source in marked)
    if is_sequential(node, marked):
        marked.update(node.outputs)
        return
    marked.update(target for source, target in wires.leaving if source in marked)
    if node.op_type != "If":
        marked.update(s.result for s in iteration(node).states if s.before in marked)


def _deciding(node: ir.Node) -> list[ir.Value]:
    """The values that decide which body of a node runs, and how often."""
    if node.domain != "" or node.op_type not in ("If", "Loop"):
        return []
    found = [node.inputs[0]] if node.op_type == "If" else list(node.inputs[:2])
    if node.op_type == "Loop":
        found.append(iteration(node).body.outputs[0])
    return [value for value in found if value is not None]


def refusals(nodes: Iterable[ir.Node], marked: set[ir.Value]) -> Iterator[tuple[ir.Node, str]]:
    """The nodes with batched operands that cannot be batched, those of bodies included, with the reason."""
    for node in nodes:
        reason = _refusal(node, marked)
        if reason is not None:
            yield node, reason
        elif wiring(node) is not None and not is_sequential(node, marked):
            for body in bodies(node):
                yield from refusals(body, marked)


def _refusal(node: ir.Node, marked: set[ir.Value]) -> str | None:
    entry = lookup(node)
    batched = [
        (index, value)
        for index, value in enumerate(node.inputs)
        if value is not None and value in marked and index not in entry.shape_only
    ]
    if not batched and not any(value in marked for value in known.captured_values(node)):
        return None
    if entry.refused is not None:
        return entry.refused
    reason = entry.refuses(node, frozenset(i for i, _ in batched)) if entry.refuses is not None else None
    if reason is not None:
        return reason
    for value in (*(v for _, v in batched), *(y for y in node.outputs if y in marked)):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            return (
                f"'{value.name}' holds sequences or optionals, which have no batch axis; "
                "express the model over tensors"
            )
    for index, value in batched:
        if index in entry.sizes and not has_one_shape(node):
            return (
                f"its operand '{value.name}' differs between the examples, and with it the shape of the "
                "result; compute it from what is not mapped"
            )
    return _changes_count(node, marked)


def has_one_shape(node: ir.Node) -> bool:
    """Whether the results certainly have the same shape for all examples."""
    return all(known.static_shape(y) is not None for y in node.outputs if y.name)


def _changes_count(node: ir.Node, marked: set[ir.Value]) -> str | None:
    """Why a loop that ends at different times has no result: it stacks a slice of each iteration."""
    if node.op_type != "Loop" or not is_sequential(node, marked):
        return None
    if any(w.whole.name and known.static_shape(w.whole) is None for w in iteration(node).writes):
        return (
            "the number of its iterations differs between the examples, and with it the length of what it "
            "stacks; use its last state only, or a trip count that is not mapped"
        )
    return None
