"""The walk that batches: one node after the other, each by its rule, or in a `Scan` over the examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.compositions import by_composition
from onnx_grad.batching.control_flow import batch_bodies
from onnx_grad.batching.dependence import check_batchable, dependents, is_sequential
from onnx_grad.batching.emission import copied
from onnx_grad.batching.operands import Batch, Operands
from onnx_grad.batching.ranks import settle_ranks
from onnx_grad.batching.registry import Entry, Result, lookup
from onnx_grad.batching.sequential import example_by_example
from onnx_grad.builder import Builder
from onnx_grad.errors import RuleError
from onnx_grad.liveness import read_values
from onnx_grad.recording import recording
from onnx_grad.wiring import wiring


class Batched(Mapping[ir.Value, ir.Value]):
    """The batched counterpart of every value that depends on a batched one.

    A value that depends on the shape of a batched one only is the same for all examples; it is repeated when
    it is asked for.

    Attributes:
        batch: The batch axis.
        batched: The counterparts that are batches.
        shared: Those that all examples share.
        counterparts: Every value that was computed again, those of bodies included, with its counterpart.
    """

    def __init__(self, op: Builder, batch: Batch, batched: Mapping[ir.Value, ir.Value]) -> None:
        self.batch = batch
        self.counterparts: list[tuple[ir.Value, ir.Value]] = []
        self.batched = dict(batched)
        self.shared: dict[ir.Value, ir.Value] = {}
        self._op = op

    def __getitem__(self, value: ir.Value) -> ir.Value:
        if value in self.shared:
            return self.batch.repeated(self._op, self.shared[value])
        return self.batched[value]

    def __iter__(self) -> Iterator[ir.Value]:
        yield from self.batched
        yield from self.shared

    def __len__(self) -> int:
        return len(self.batched) + len(self.shared)


def batch(
    op: Builder,
    nodes: Sequence[ir.Node],
    batched: Mapping[ir.Value, ir.Value],
    size: int | ir.Value,
) -> Batched:
    """Build the batched counterpart of every node that depends on a batched value.

    Args:
        op: Builds the graph; `nodes` are left as they are, save for ranks that are noted where none were.
        nodes: The nodes for one example in topological order, of a graph or recorded.
        batched: Values that they read with their batched counterparts, of shape [B, *shape of one].
        size: B, or a 1-D int64 value of one element that says so at run time.

    Returns:
        The batched counterpart of every value that depends on a batched one. What depends on none is computed
        once, by the nodes that there are, and not in it.

    Raises:
        UnsupportedOpError: Nodes cannot be batched; all of them are named, before anything is built.
    """
    settle_ranks(nodes)
    marked = dependents(nodes, batched)
    check_batchable(nodes, marked)
    result = Batched(op, Batch(size, _dimension(size, batched.values())), batched)
    Walk(op, result, marked).run(nodes)
    return result


def _dimension(size: int | ir.Value, batched: Iterable[ir.Value]) -> known.Dimension:
    if isinstance(size, int):
        return size
    first = (dims[0] for value in batched if (dims := known.dimensions(value)))
    return next(first, ir.SymbolicDim(None))


class Walk:
    """Batches the nodes of one graph, main or body.

    Args:
        op: Builds the batched graph.
        result: Where the counterparts are noted.
        marked: The values that differ between the examples.
        is_of_model: Whether the nodes are of the model, so that their counterparts are noted for their names.
    """

    def __init__(self, op: Builder, result: Batched, marked: set[ir.Value], is_of_model: bool = True) -> None:
        self.op = op
        self._is_of_model = is_of_model
        self.batch = result.batch
        self.marked = marked
        self._result = result

    def run(self, nodes: Iterable[ir.Node], every: bool = False) -> None:
        """Batch `nodes`.

        Args:
            nodes: They are in topological order.
            every: Whether those that do not depend on what is batched are built again as well, for a body.
        """
        with recording(self.op):
            for node in nodes:
                if every or any(map(self._is_known, read_values(node))):
                    with self.op.batching(node, node.name or node.op_type):
                        self._build(node)

    def inside(self, op: Builder) -> Walk:
        """The same for a body that `op` builds."""
        return Walk(op, self._result, self.marked, self._is_of_model)

    def beside_model(self) -> Walk:
        """The same for nodes that only serve to be batched."""
        return Walk(self.op, self._result, self.marked, is_of_model=False)

    def value(self, value: ir.Value) -> ir.Value:
        """The counterpart of a value, batched or shared."""
        return self._result.batched.get(value) or self.shared(value)

    def shared(self, value: ir.Value) -> ir.Value:
        """What is read in place of a value that is the same for all examples."""
        return self._result.shared.get(value, value)

    def repeated(self, value: ir.Value) -> ir.Value:
        """The counterpart of a value as a batch in any case."""
        found = self._result.batched.get(value)
        return self.batch.repeated(self.op, self.shared(value)) if found is None else found

    def is_batched(self, value: ir.Value) -> bool:
        """Whether the counterpart of a value is a batch."""
        return value in self._result.batched

    def note(self, value: ir.Value, counterpart: ir.Value, batched: bool) -> None:
        """Note the counterpart of a value."""
        if batched:
            self.batch.annotate(counterpart, value)
            self._result.batched[value] = counterpart
        else:
            if counterpart.shape is None:
                counterpart.shape = value.shape
            if value.type is not None:
                counterpart.type = value.type
            self._result.shared[value] = counterpart
        if self._is_of_model:
            self._result.counterparts.append((value, counterpart))

    def _is_known(self, value: ir.Value) -> bool:
        return value in self._result.batched or value in self._result.shared

    def _build(self, node: ir.Node) -> None:
        entry = lookup(node)
        if not any(map(self.is_batched, read_values(node))):
            self._note_all(node, copied(self.op, node, self.shared).outputs, batched=False)
            return
        if wiring(node) is not None and not is_sequential(node, self.marked):
            batch_bodies(self, node)
            return
        results = self._apply(entry, node)
        differs = any(y in self.marked for y in node.outputs)
        if results is None:
            results = by_composition(self, node)
        if results is None:
            results = example_by_example(self.op, node, self.batch, self.value, self.is_batched)
        self._note_all(node, results, batched=differs)

    def _apply(self, entry: Entry, node: ir.Node) -> Sequence[ir.Value | None] | None:
        """What the rule gives; `None` where it leaves the node to a `Scan`."""
        x = Operands(self.op, node, self.batch, self._result.batched, self._result.shared)
        if entry.rule is None or any(x.is_batched(index) for index in entry.sizes):
            return None
        result: Result = entry.rule(self.op, node, x)
        if result is None or isinstance(result, ir.Value):
            return None if result is None else [result]
        if len(result) > len(node.outputs):
            raise RuleError(
                f"batching of {node.op_type} node '{node.name}': the rule gave {len(result)} results for "
                f"{len(node.outputs)} outputs"
            )
        return list(result)

    def _note_all(self, node: ir.Node, results: Sequence[ir.Value | None], batched: bool) -> None:
        for output, result in zip(node.outputs, results, strict=False):
            if output.name and result is not None:
                self.note(output, result, batched)
