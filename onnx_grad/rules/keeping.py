"""What the backward pass of a body reads of its forward pass: kept, or computed again.

The backward pass of a body is a body of another node, which cannot see into the first. What it reads of the
forward pass is handed out by the forward node and read from there, or computed again from what is handed out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.liveness import detach, live_nodes, read_values
from onnx_grad.rules.bodies import body_graph, copy_node, is_random, values_of
from onnx_grad.wiring import bodies

# Stands for a dimension that is not known, where sizes are compared.
_TYPICAL_DIMENSION = 64
_UNKNOWN_SIZE = 2**62


class BackwardBody:
    """The backward pass of a body, until it becomes a graph.

    Args:
        op: The builder that recorded its nodes.
        forward: The body that it differentiates.
        outputs: What it is to give out.
    """

    def __init__(self, op: Builder, forward: ir.Graph, outputs: Sequence[ir.Value]) -> None:
        self._op = op
        self._forward = forward
        self._outputs = list(outputs)
        self._nodes = live_nodes(op.nodes, outputs)
        detach(set(op.nodes).difference(self._nodes))
        self._leave_shapes_in_forward_pass()

    def needs(self, value: ir.Value, kept: Collection[ir.Value]) -> bool:
        """Whether it reads a value of the forward body, be it to compute others from it again."""
        reads = [read for read in self._forward_values() if read not in kept]
        return value in reads or value in self._sources(reads, kept)

    def everything(self) -> list[ir.Value]:
        """The values of the forward body that it reads, without those that never change."""
        varying = self._varying(captures_vary=True)
        return [value for value in self._forward_values() if value in varying]

    def smallest(self, free: Collection[ir.Value]) -> list[ir.Value]:
        """What to keep of an iteration: all it reads, or what that can be computed again from.

        The one that has fewer elements, with a typical number for unknown dimensions; where they are equal,
        all that it reads, which saves the time. Random numbers are kept in any case. What does not change
        from one iteration to the next is computed again, and so is what may change its shape: it has no
        stack.

        Args:
            free: Values of the forward body that can be had without being kept.
        """
        varying = self._varying(captures_vary=False)
        everything = [v for v in self._forward_values() if v in varying and v not in free]
        sources = [v for v in self._sources(everything, free) if v in varying]
        lasting = self._lasting_symbols()
        return sources if _size(sources, lasting) < _size(everything, lasting) else everything

    def graph(
        self, inputs: Sequence[ir.Value], available: Mapping[ir.Value, ir.Value], name: str
    ) -> ir.Graph:
        """Its graph, with what is not available computed again.

        Args:
            inputs: Its inputs.
            available: Where it finds values of the forward body.
            name: The name of the graph.
        """
        copies = dict(available)
        again = self._compute_again(copies)
        nodes = [*again, *self._nodes]
        _substitute(nodes, copies)
        outputs = [copies.get(value, value) for value in self._outputs]
        self._nodes = nodes
        return body_graph(self._op, nodes, inputs, outputs, name)

    def _forward_values(self) -> dict[ir.Value, None]:
        """What it reads of the forward body, in order."""
        own = set(values_of(self._forward))
        read = (value for node in self._nodes for value in read_values(node))
        return dict.fromkeys(value for value in (*read, *self._outputs) if value in own)

    def _leave_shapes_in_forward_pass(self) -> None:
        """Move each `Shape` of a forward value into the forward body: a shape is smaller to keep."""
        own = set(values_of(self._forward))
        moved = [node for node in self._nodes if node.op_type == "Shape" and node.inputs[0] in own]
        for node in moved:
            (value,) = node.inputs
            producer = value.producer() if value is not None else None
            if producer is not None:
                self._forward.insert_after(producer, node)
            elif len(self._forward):
                self._forward.insert_before(self._forward[0], node)
            else:
                self._forward.append(node)
        self._nodes = [node for node in self._nodes if node not in set(moved)]

    def _varying(self, captures_vary: bool) -> set[ir.Value]:
        """The values of the forward body that depend on its inputs, on random numbers, or on captures."""
        varying = set(self._forward.inputs)
        own = set(values_of(self._forward))
        for node in self._forward:
            if is_random(node) or any(
                value in varying or (captures_vary and value not in own) for value in read_values(node)
            ):
                varying.update(node.outputs)
        return varying

    def _lasting_symbols(self) -> set[str | None]:
        """The symbolic dimensions that are the same in every iteration: those of what the body reads."""
        read = {value for node in self._forward for value in read_values(node)}
        outer = read.difference(*(node.outputs for node in self._forward))
        return {
            d.value
            for value in (*self._forward.inputs, *outer)
            for d in known.dimensions(value) or ()
            if isinstance(d, ir.SymbolicDim)
        } - {None}

    def _sources(self, values: Iterable[ir.Value], free: Collection[ir.Value]) -> list[ir.Value]:
        """What `values` can be computed from: inputs, shapes, and results that cannot be had again.

        Nothing is computed from what is `free`.
        """
        own = set(values_of(self._forward))
        pending, found = list(values), dict[ir.Value, None]()
        seen = set(pending)
        while pending:
            value = pending.pop()
            node = value.producer()
            if value in free or value not in own:
                continue
            if node is None or node.op_type == "Shape" or is_random(node):
                found[value] = None
                continue
            new = [v for v in read_values(node) if v not in seen]
            seen.update(new)
            pending.extend(new)
        return list(found)

    def _compute_again(self, copies: dict[ir.Value, ir.Value]) -> list[ir.Node]:
        """Copies of the forward nodes whose results are read but not available, noted in `copies`."""
        needed = {value for value in self._forward_values() if value not in copies}
        nodes = []
        for node in reversed(self._forward):
            if not needed.isdisjoint(node.outputs):
                needed.update(value for value in read_values(node) if value not in copies)
                nodes.append(node)
        for name, value in self._forward.initializers.items():
            if value in needed:
                copies[value] = self._copy_initializer(name, value)
        again = []
        for node in reversed(nodes):
            copy = copy_node(self._op, node)
            copies.update(
                pair for pair in zip(node.outputs, copy.outputs, strict=True) if pair[0] not in copies
            )
            _substitute([copy], copies)
            again.append(copy)
        return again

    def _copy_initializer(self, name: str, value: ir.Value) -> ir.Value:
        copy = ir.Value(
            name=self._op.unique_name(name), shape=value.shape, type=value.type, const_value=value.const_value
        )
        self._op.initializers.append(copy)
        return copy


def _size(values: Iterable[ir.Value], lasting: Collection[str | None]) -> int:
    """How many elements `values` have together, about; very many where a shape may change."""
    return sum(_elements(value, lasting) for value in values)


def _elements(value: ir.Value, lasting: Collection[str | None]) -> int:
    dims = known.dimensions(value)
    if dims is None or any(isinstance(d, ir.SymbolicDim) and d.value not in lasting for d in dims):
        return _UNKNOWN_SIZE
    return math.prod(d if isinstance(d, int) else _TYPICAL_DIMENSION for d in dims)


def _substitute(nodes: Iterable[ir.Node], copies: Mapping[ir.Value, ir.Value]) -> None:
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value in copies:
                node.replace_input_with(index, copies[value])
        for body in bodies(node):
            _substitute(body, copies)
