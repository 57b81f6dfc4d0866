"""Which nodes a derivative flows through, and what blocks it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known, registry
from onnx_grad.registry import Entry, State


@dataclass(frozen=True)
class Step:
    """A forward node on the way from `wrt` to `of`, with what is declared of its operator.

    Attributes:
        node: The forward node.
        entry: The declared state of its operator.
        wanted: Positions of the inputs whose cotangents are needed.
        reached: Positions of the outputs whose cotangents arrive.
        captures: Whether one of its subgraphs captures a value that depends on `wrt`.
    """

    node: ir.Node
    entry: Entry
    wanted: tuple[int, ...]
    reached: tuple[int, ...]
    captures: bool = False

    def blocked(self) -> str | None:
        """Why this node cannot be differentiated, or `None` when it can."""
        if self.entry.state is State.REFUSED:
            return self.entry.reason
        if _subgraphs(self.node):
            return (
                "it holds a subgraph, and subgraphs are not differentiated; "
                "cut the flow with stop=[…] at a tensor before or after it"
            )
        if self.entry.refuses is not None:
            return self.entry.refuses(self.node)
        return None


class Path:
    """The nodes through which `of` depends on `wrt`, in topological order.

    Args:
        graph: A forward graph in topological order.
        wrt: The values to differentiate with respect to.
        of: The values to differentiate.
        stop: Values that count as constants: nothing flows through them to what produced them.
    """

    def __init__(
        self,
        graph: ir.Graph,
        wrt: Iterable[ir.Value],
        of: Iterable[ir.Value],
        stop: Iterable[ir.Value] = (),
    ) -> None:
        self._opset = graph.opset_imports.get("")
        self._stop = set(stop)
        self._dependent = set(wrt)
        candidates = [node for node in graph if self._spread(node)]
        self._needed = set(of)
        self.steps = [step for node in reversed(candidates) for step in self._step(node)]
        self.steps.reverse()

    def reaches(self, value: ir.Value) -> bool:
        """Whether a differentiable path leads from `value` to some value in `of`."""
        return value in self._needed

    def blocked(self) -> list[tuple[Step, str]]:
        """Every node that cannot be differentiated, with the reason."""
        return [(step, reason) for step in self.steps if (reason := step.blocked()) is not None]

    def _spread(self, node: ir.Node) -> bool:
        """Mark the outputs of `node` as dependent when an input is; whether it is.

        Integers end a path, save those that a quantising operator rounded real numbers to.
        """
        entry = self._entry(node)
        inputs = dict(self._dependent_inputs(node, entry))
        if entry.state is State.ZERO or not (inputs or self._captures(node)):
            return False
        quantised = entry.rounds or not all(map(known.may_be_float, inputs.values()))
        self._dependent.update(
            output
            for output in node.outputs
            if (quantised or known.may_be_float(output)) and output not in self._stop
        )
        return True

    def _dependent_inputs(self, node: ir.Node, entry: Entry) -> Iterator[tuple[int, ir.Value]]:
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._dependent and index not in entry.frozen:
                yield index, value

    def _captures(self, node: ir.Node) -> bool:
        return any(value in self._dependent for value in known.captured_values(node))

    def _step(self, node: ir.Node) -> Iterator[Step]:
        reached = tuple(
            index
            for index, output in enumerate(node.outputs)
            if output in self._needed and output not in self._stop
        )
        if not reached:
            return
        entry = self._entry(node)
        wanted = dict(self._dependent_inputs(node, entry))
        captures = self._captures(node)
        if not wanted and not captures:
            return
        self._needed.update(wanted.values())
        if captures:
            self._needed.update(v for v in known.captured_values(node) if v in self._dependent)
        yield Step(node, entry, tuple(wanted), reached, captures)

    def _entry(self, node: ir.Node) -> Entry:
        return registry.lookup(node.domain, node.op_type, self._opset)


def _subgraphs(node: ir.Node) -> bool:
    return any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    )
