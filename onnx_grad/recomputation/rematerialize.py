"""Computing forward values again in the backward pass, instead of keeping them.

The backward nodes are gone through in their order. The first that reads a value that is not kept opens a gate
(see `gates`) behind all that came before it, and clones of the forward nodes, back to values that are kept,
compute that value from what is held at this gate. So the clones differ from the originals in what they read,
and run when the backward pass gets there; and gradients that were due before are computed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX, Builder, taken_names
from onnx_grad.liveness import read_values
from onnx_grad.path import node_label
from onnx_grad.recomputation.gates import hold, open_gate
from onnx_grad.recomputation.walk import BackwardPass
from onnx_grad.wiring import redirect

# The note of a node that computes again what a forward node computed: the name of the latter.
RECOMPUTES = METADATA_PREFIX + "recomputes"


def rematerialize(walk: BackwardPass, dropped: Set[ir.Value]) -> None:
    """Let the backward pass of `walk` compute `dropped` values again, so that they need not be kept for it.

    Args:
        walk: The graph, which is changed.
        dropped: Activations, each of a node that can be computed twice. The outputs of the graph are kept.
    """
    dropped = dropped - set(walk.graph.outputs)
    if not dropped.isdisjoint(walk.kept):
        _Rematerialization(walk, dropped).run()


class _Rematerialization:
    """One pass over the backward nodes.

    What it knows at any time: the gate that was opened last, the values that depend on a gate, and so come
    late, and the copies of dropped values that there are by now.
    """

    def __init__(self, walk: BackwardPass, dropped: Set[ir.Value]) -> None:
        self._walk = walk
        self._graph = walk.graph
        self._dropped = dropped
        self._op = Builder(walk.opset, taken_names(walk.graph))
        self._places = {node: place for place, node in enumerate(walk.graph)}
        self._last_reads = {value: self._places[n] for n in walk.nodes for value in read_values(n)}
        self._outputs = set(walk.graph.outputs)
        self._copies: dict[ir.Value, ir.Value] = {}
        self._late: set[ir.Value] = set()
        self._since_gate: list[ir.Value] = []
        self._gate = open_gate(self._op, self._forward_ends())
        self._seeds = {seed: self._held(seed) for seed in walk.seeds if seed in self._last_reads}

    def run(self) -> None:
        for node in self._walk.nodes:
            replaced = self._replaced(node)
            if replaced:
                self._graph.insert_before(node, self._op.nodes)
                self._op.nodes.clear()
                redirect(node, replaced)
            if not self._late.isdisjoint(read_values(node)):
                self._late.update(node.outputs)
                self._since_gate.extend(node.outputs)
        for value in self._op.initializers:
            if value.uses() and value.name not in self._graph.initializers:
                self._graph.register_initializer(value)

    def _forward_ends(self) -> Iterator[ir.Value]:
        """What is there once the forward pass has ended, shapes of what is not kept included."""
        produced = {value for node in self._walk.forward for value in node.outputs}
        yield from dict.fromkeys(v for v in (*self._walk.ends, *self._graph.outputs) if v in produced)
        shapes = [node.outputs[0] for node in self._walk.shapes if node.inputs[0] in self._dropped]
        if shapes:
            with self._op.serving("gate"):
                yield self._op.Concat(*shapes, axis=0)

    def _replaced(self, node: ir.Node) -> dict[ir.Value, ir.Value]:
        """What a backward node is to read instead of some of what it reads."""
        read = list(dict.fromkeys(read_values(node)))
        self._recompute([v for v in read if v in self._dropped and v not in self._copies], node)
        replaced = {v: new for v in read if (new := self._seeds.get(v) or self._copies.get(v)) is not None}
        if not replaced and self._late.isdisjoint(read):
            # Whatever is prepared of a forward value would lie around if it were prepared early.
            held = next(filter(self._varies, read), None)
            if held is not None:
                self._open_gate(self._places[node])
                replaced[held] = self._held(held)
        return replaced

    def _recompute(self, values: list[ir.Value], reader: ir.Node) -> None:
        if not values:
            return
        self._open_gate(self._places[reader])
        for node in sorted(self._needed_for(values), key=self._places.__getitem__):
            self._clone(node)

    def _open_gate(self, place: int) -> None:
        """Open a gate behind what was computed since the last one and is of use at `place` or later."""
        ends = [v for v in self._since_gate if v in self._outputs or self._last_reads.get(v, -1) >= place]
        if ends:
            self._gate = open_gate(self._op, ends, self._gate)
            self._since_gate.clear()

    def _needed_for(self, values: Iterable[ir.Value]) -> set[ir.Node]:
        """The forward nodes that have to run again: those of dropped values that there are no copies of."""
        needed: set[ir.Node] = set()
        waiting = list(values)
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node not in needed:
                needed.add(node)
                waiting += (v for v in read_values(node) if v in self._dropped and v not in self._copies)
        return needed

    def _clone(self, node: ir.Node) -> None:
        read = list(read_values(node))
        instead = {value: self._copies[value] for value in read if value in self._copies}
        if not instead:
            # An activation rather than an input of the graph, which may be a weight.
            held = min(filter(self._varies, read), key=lambda value: value not in self._walk.activations)
            instead[held] = self._held(held)
        label = node_label(node)
        clone = ir.Node(
            node.domain,
            node.op_type,
            [value if value is None else instead.get(value, value) for value in node.inputs],
            node.attributes.values(),
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=self._op.unique_name(f"{label}/recomputed"),
            metadata_props={METADATA_PREFIX + "forward_node": label, RECOMPUTES: label},
        )
        for value, copy in zip(node.outputs, clone.outputs, strict=True):
            copy.name = self._op.unique_name(f"{value.name}/recomputed") if value.name else ""
            copy.shape, copy.type = value.shape, value.type
            if value in self._dropped:
                self._copies[value] = copy
        self._late.update(clone.outputs)
        self._op.nodes.append(clone)

    def _held(self, value: ir.Value) -> ir.Value:
        held = hold(self._op, value, self._gate)
        self._late.add(held)
        return held

    def _varies(self, value: ir.Value) -> bool:
        """Whether `value` can be held: a tensor that is there only when the model runs."""
        if not isinstance(value.type, ir.TensorType):
            return False
        return value in self._walk.activations or (value.is_graph_input() and known.constant(value) is None)
