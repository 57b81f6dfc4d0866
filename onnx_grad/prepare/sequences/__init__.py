"""Sequences and optionals, expressed over tensors where a derivative flows through them.

A derivative is a tensor, and so is all that it flows through. `SequenceConstruct`, `SplitToSequence` and the
like are what exporters make of lists of tensors, and mostly it is known before the model runs which tensor is
taken from which list: then the list is nothing but these tensors. Where the length is only known when the
model runs, the pieces of one tensor, and what a loop appends, have a form over one tensor too: reading one of
them is a `Gather` or a `Slice`, joining them gives the tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnx_grad.prepare.sequences import branches, loops, makers, maps, readers
from onnx_grad.prepare.sequences.context import Handler, Walk, holds_tensors
from onnx_grad.wiring import bodies

_HANDLERS: dict[str, Handler] = {
    "ConcatFromSequence": readers.concat_from_sequence,
    "Identity": makers.identity,
    "If": branches.if_,
    "Loop": loops.loop,
    "Optional": makers.optional,
    "OptionalGetElement": readers.optional_get_element,
    "OptionalHasElement": readers.optional_has_element,
    "SequenceAt": readers.sequence_at,
    "SequenceConstruct": makers.sequence_construct,
    "SequenceEmpty": makers.sequence_empty,
    "SequenceErase": makers.sequence_erase,
    "SequenceInsert": makers.sequence_insert,
    "SequenceLength": readers.sequence_length,
    "SequenceMap": maps.sequence_map,
    "SplitToSequence": makers.split_to_sequence,
}
_OF_SEQUENCES = frozenset(_HANDLERS) - {"Identity", "If", "Loop"}


def handles_sequences(node: ir.Node) -> bool:
    """Whether `node` makes or reads a sequence or an optional, leaving its bodies aside."""
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in _OF_SEQUENCES or any(map(holds_tensors, (*node.inputs, *node.outputs)))


def express_over_tensors(graph: ir.Graph, is_active: Callable[[ir.Value], bool]) -> bool:
    """Replace what derivatives flow through of sequences and optionals by tensors.

    The outputs of `graph` stay what they are, sequences included, and so do sequences through which no
    derivative flows. A node that had to stay says why in its `meta`, under `onnx_grad.path.OBSTACLE`.

    Args:
        graph: A main graph with inferred types; it is changed.
        is_active: Whether a derivative flows through a value.

    Returns:
        Whether anything was replaced: then shapes have to be inferred again.
    """
    walk = Walk(graph, is_active, _HANDLERS)
    walk.visit(graph)
    walk.finish()
    if walk.changed:
        _forget_shapes_in_bodies(graph)
    return walk.changed


def _forget_shapes_in_bodies(graph: ir.Graph) -> None:
    """What was inferred of results in bodies rests on the shapes that sequences were thought to hold."""
    for node in graph:
        for body in bodies(node):
            for inner in body:
                for output in inner.outputs:
                    output.shape = None
            _forget_shapes_in_bodies(body)
