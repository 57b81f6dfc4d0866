"""Which nodes a derivative flows through, and what blocks it."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known, registry
from onnx_grad.registry import Composition, Entry, Linearity, OperatorId, Quantization, State
from onnx_grad.rounding import gives_floats, has_schema, on_floats, takes_floats
from onnx_grad.wiring import Edge, Wiring, bodies, wiring

# Where a path runs: a graph, or some nodes of one, or of several that see each other.
Nodes = ir.Graph | ir.GraphView

# Where the `meta` of a node says why it could not be made what has a rule.
OBSTACLE = "onnx_grad.obstacle"


@dataclass(frozen=True)
class Step:
    """A forward node on the way from `wrt` to `of`, with what is declared of its operator.

    Attributes:
        node: The forward node.
        entry: The declared state of its operator.
        wanted: Positions of the inputs whose cotangents are needed.
        reached: Positions of the outputs whose cotangents arrive.
        captured: The values that its bodies read from outside and whose cotangents are needed.
    """

    node: ir.Node
    entry: Entry
    wanted: tuple[int, ...]
    reached: tuple[int, ...]
    captured: tuple[ir.Value, ...] = ()

    @property
    def composition(self) -> Composition | None:
        """What builds the operator out of others, where its gradient is that of what it is composed of."""
        return on_floats if self.runs_on_floats else self.entry.composition

    @property
    def linearity(self) -> Linearity | None:
        """How the node is linear, where that is declared and holds for it."""
        declared = None if self.is_quantized else self.entry.linearity
        if declared is None or (declared.unless is not None and declared.unless(self.node)):
            return None
        return declared

    @property
    def where(self) -> str:
        """The node, for errors."""
        return f"gradient of {self.node.op_type} node '{node_label(self.node)}'"

    @functools.cached_property
    def is_quantized(self) -> bool:
        """Whether integers that stand for real numbers come in or go out."""
        operands = (self.node.inputs[index] for index in self.wanted)
        results = (self.node.outputs[index] for index in self.reached)
        values = (*operands, *results, *self.captured)
        return not all(value is None or known.may_be_float(value) for value in values)

    @property
    def runs_on_floats(self) -> bool:
        """Whether integers that stand for real numbers have to be made floats for the rule."""
        return self.is_quantized and self.entry.quantization is None and not self.entry.rounds

    def blocked(self) -> str | None:
        """Why this node cannot be differentiated, or `None` when it can."""
        if OBSTACLE in self.node.meta:
            return str(self.node.meta[OBSTACLE])
        if self.entry.state is State.REFUSED:
            return self.entry.reason
        if self.runs_on_floats and (self.entry.structural is not None or not has_schema(self.node)):
            return (
                "integers that stand for real numbers go into or out of it, and the rule of "
                f"{self.node.op_type} is for floats; dequantize them before it and quantize them after it"
            )
        if self.entry.structural is None and next(bodies(self.node), None) is not None:
            return (
                f"it holds a graph, and how values flow through {self.node.op_type} is not known; "
                "cut the flow with stop=[…] at a tensor before or after it"
            )
        if self.entry.refuses is not None:
            return self.entry.refuses(self.node)
        return None


class Path:
    """The nodes through which `of` depends on `wrt`, in topological order, those inside bodies included.

    Args:
        graph: A forward graph in topological order, or a view on some of its nodes.
        wrt: The values to differentiate with respect to.
        of: The values to differentiate.
        stop: Values that count as constants: nothing flows through them to what produced them.
        quantization: What is done about rounding; `None` refuses it.
        functions: Domain and name of the functions of the model.

    Attributes:
        steps: The nodes of `graph` itself.
        quantization: What is done about rounding.
    """

    def __init__(
        self,
        graph: Nodes,
        wrt: Iterable[ir.Value],
        of: Iterable[ir.Value],
        stop: Iterable[ir.Value] = (),
        quantization: Quantization | None = None,
        functions: Container[OperatorId] = (),
    ) -> None:
        self.quantization = quantization
        self._opset = graph.opset_imports.get("")
        self._stop = set(stop)
        self._functions = functions
        self._candidates: dict[Nodes, list[ir.Node]] = {}
        self._steps: dict[Nodes, list[Step]] = {}
        self._wrt = frozenset(wrt)
        self._dependent = set(self._wrt)
        self._spread_through(graph)
        self._needed = set(of)
        self._step_through(graph)
        self.steps = self._steps[graph]

    def steps_in(self, body: Nodes) -> list[Step]:
        """The nodes of a body through which its outputs depend on `wrt`, in topological order."""
        return self._steps.get(body, [])

    def begins_at(self, value: ir.Value) -> bool:
        """Whether `value` is in `wrt`, so that derivatives stop there."""
        return value in self._wrt

    def reaches(self, value: ir.Value) -> bool:
        """Whether a differentiable path leads from `value` to some value in `of`."""
        return value in self._needed

    def is_active(self, value: ir.Value) -> bool:
        """Whether `value` depends on `wrt`, and some value in `of` on it."""
        return value in self._dependent and value in self._needed

    def follow(self, old: ir.Value, new: ir.Value) -> None:
        """Let what is known of `old` hold for `new`, which stands in its place."""
        for marked in (self._dependent, self._needed, self._stop):
            if old in marked:
                marked.add(new)

    def all_steps(self) -> Iterator[Step]:
        """The steps of the graph and of all bodies on the way."""
        for steps in self._steps.values():
            yield from steps

    def blocked(self) -> list[tuple[Step, str]]:
        """Every node that cannot be differentiated, with the reason."""
        return [(step, reason) for step in self.all_steps() if (reason := step.blocked()) is not None]

    def _spread_through(self, graph: Nodes) -> None:
        self._candidates[graph] = [node for node in graph if self._spread(node)]

    def _spread(self, node: ir.Node) -> bool:
        """Mark the outputs of `node` as dependent when an input is; whether it is.

        Integers end a path, save those that a quantising operator rounded real numbers to.
        """
        entry = self._entry(node)
        inputs = dict(self._dependent_inputs(node, entry))
        if entry.is_flat(node) or not (inputs or self._dependent_captures(node)):
            return False
        wires = wiring(node) if entry.structural is not None else None
        if wires is not None:
            self._spread_through_bodies(wires)
            return True
        self._dependent.update(
            output
            for index, output in enumerate(node.outputs)
            if (
                known.may_be_float(output)
                or known.is_narrow_float(output)
                or (entry.rounds and known.may_be_rounded(output))
                or (
                    known.may_be_rounded(output)
                    and gives_floats(node, index)
                    and any(map(known.may_be_rounded, inputs.values()))
                )
            )
            and output not in self._stop
        )
        return True

    def _spread_through_bodies(self, wires: Wiring) -> None:
        """Until a further iteration adds nothing."""
        self._follow(wires.entering, self._dependent)
        changed = True
        while changed:
            for body in wires.bodies:
                self._spread_through(body)
            changed = self._follow(wires.returning, self._dependent)
        self._follow((*wires.leaving, *wires.skipping), self._dependent)

    def _follow(self, edges: Iterable[Edge], marked: set[ir.Value]) -> bool:
        """Mark where `edges` from marked values lead; whether that is anything new."""
        new = {
            target
            for source, target in edges
            if source in marked and _may_flow(source, target) and target not in self._stop
        }
        before = len(marked)
        marked |= new
        return len(marked) > before

    def _dependent_inputs(self, node: ir.Node, entry: Entry) -> Iterator[tuple[int, ir.Value]]:
        for index, value in enumerate(node.inputs):
            if value is None or value not in self._dependent or index in entry.frozen:
                continue
            if known.may_be_float(value) or entry.rounds or takes_floats(node, index):
                yield index, value

    def _dependent_captures(self, node: ir.Node) -> list[ir.Value]:
        return list(dict.fromkeys(v for v in known.captured_values(node) if v in self._dependent))

    def _step_through(self, graph: Nodes) -> None:
        steps = [step for node in reversed(self._candidates[graph]) for step in self._step(node)]
        self._steps[graph] = steps[::-1]

    def _step(self, node: ir.Node) -> Iterator[Step]:
        reached = tuple(
            index
            for index, output in enumerate(node.outputs)
            if output in self._needed and output not in self._stop
        )
        if not reached:
            return
        entry = self._entry(node)
        wires = wiring(node) if entry.structural is not None else None
        if wires is not None:
            self._step_through_bodies(wires)
            wanted = {i: v for i, v in self._dependent_inputs(node, entry) if self._enters(v, wires)}
            captured = [v for v in self._dependent_captures(node) if v in self._needed]
        else:
            wanted = dict(self._dependent_inputs(node, entry))
            captured = self._dependent_captures(node)
        if not wanted and not captured:
            return
        self._needed.update(wanted.values(), captured)
        yield Step(node, entry, tuple(wanted), reached, tuple(captured))

    def _step_through_bodies(self, wires: Wiring) -> None:
        """The same as spreading, against the edges."""
        self._follow(_reversed((*wires.leaving, *wires.skipping)), self._needed)
        changed = True
        while changed:
            for body in wires.bodies:
                if body in self._candidates:
                    self._step_through(body)
            changed = self._follow(_reversed(wires.returning), self._needed)

    def _enters(self, value: ir.Value, wires: Wiring) -> bool:
        """Whether some value in `of` depends on an operand through the bodies, or around them."""
        edges = (*wires.entering, *wires.skipping)
        return any(source is value and self.is_active(target) for source, target in edges)

    def _entry(self, node: ir.Node) -> Entry:
        return registry.lookup(node.domain, node.op_type, self._opset, self.quantization, self._functions)


def node_label(node: ir.Node) -> str:
    """How a forward node is called in names: its own name, or that of its first output."""
    return node.name or next((o.name for o in node.outputs if o.name), node.op_type)


def _may_flow(source: ir.Value, target: ir.Value) -> bool:
    """Whether a derivative can flow between values of one type; marked integers stand for real numbers."""
    return known.may_be_float(target) or not known.may_be_float(source)


def _reversed(edges: Iterable[Edge]) -> Iterator[Edge]:
    return ((target, source) for source, target in edges)
