"""Which tensors share memory while ONNX Runtime runs a graph, and when each piece of memory is in use.

It plans this before it runs: a view takes the memory of its operand; some operators write over an operand
that nothing reads any more; and a tensor whose shape and type are those of one that nothing reads any more
gets that one's memory, which is held in between.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.liveness import read_values
from onnx_grad.memory.sizes import byte_size

# Their output is their first operand in another shape, and no element is copied.
_VIEWS = frozenset("Flatten Identity Reshape Squeeze Unsqueeze".split())

# Operators whose kernels write over their first operand where they may, as measured with ONNX Runtime 1.32.
# The arithmetic ones are not among them.
_IN_PLACE = frozenset(
    "Cast Celu Clip Elu HardSigmoid LeakyRelu LogSoftmax Relu ScatterElements Selu Shrink Sigmoid Softmax "
    "Softplus Softsign Tanh ThresholdedRelu".split()
)


@dataclass
class Buffer:
    """A piece of memory.

    Attributes:
        size: Its bytes.
        first: The position of the node at which it is allocated.
        last: The position of the node after which it is freed.
        tensors: What lies in it, with the positions of the nodes at which each comes and is read last.
    """

    size: int
    first: int
    last: int
    tensors: list[tuple[str, int, int]] = field(default_factory=list)


def plan_buffers(
    graph: ir.Graph, order: Sequence[ir.Node], reuse: bool = True
) -> tuple[list[Buffer], list[str]]:
    """The memory of the tensors that the nodes give, other than outputs of the graph.

    Args:
        graph: A graph.
        order: The nodes that run, in order.
        reuse: Whether memory is held for tensors of the same shape and type that come later.

    Returns:
        The buffers, and the names of the tensors whose size is not known.
    """
    plan = _Plan(graph, order, reuse)
    for place, node in enumerate(order):
        plan.run(place, node)
    return plan.buffers, plan.unsized


class _Plan:
    def __init__(self, graph: ir.Graph, order: Sequence[ir.Node], reuse: bool) -> None:
        self.buffers: list[Buffer] = []
        self.unsized: list[str] = []
        self._reuses = reuse
        self._outputs = set(graph.outputs)
        self._reads = Counter(value for node in order for value in set(read_values(node)))
        self._last_reads = {value: p for p, node in enumerate(order) for value in read_values(node)}
        self._of: dict[ir.Value, int] = {}
        self._pending: Counter[int] = Counter()
        self._kinds: list[object] = []
        self._free: defaultdict[object, list[int]] = defaultdict(list)

    def run(self, place: int, node: ir.Node) -> None:
        """Allocate what `node` gives, and free what it is the last to read."""
        for index, value in enumerate(node.outputs):
            if value.name and value not in self._outputs:
                self._allocate(place, node, index, value)
        read = [self._of[value] for value in dict.fromkeys(read_values(node)) if value in self._of]
        self._pending.subtract(read)
        for buffer in dict.fromkeys((*read, *(self._of[v] for v in node.outputs if v in self._of))):
            if self._pending[buffer] == 0:
                self.buffers[buffer].last = place
                self._free[self._kinds[buffer]].append(buffer)

    def _allocate(self, place: int, node: ir.Node, index: int, value: ir.Value) -> None:
        operand = node.inputs[0] if node.inputs else None
        if index == 0 and operand is not None and is_view(node):
            if operand in self._of:
                self._put(place, value, self._of[operand])
            return
        buffer = self._overwritten(node, value) if index == 0 else None
        if buffer is None:
            buffer = self._reused(value)
        if buffer is None:
            size = byte_size(value)
            if size is None:
                self.unsized.append(value.name or "")
            buffer = len(self.buffers)
            self.buffers.append(Buffer(size or 0, place, place))
            self._kinds.append(_kind(value))
        self._put(place, value, buffer)

    def _put(self, place: int, value: ir.Value, buffer: int) -> None:
        self._of[value] = buffer
        self._pending[buffer] += self._reads[value]
        self.buffers[buffer].tensors.append((value.name or "", place, self._last_reads.get(value, place)))

    def _overwritten(self, node: ir.Node, value: ir.Value) -> int | None:
        """The memory of the operand that `node` writes over, where it is the last to read it."""
        operand = node.inputs[0] if node.op_type in _IN_PLACE and node.domain == "" else None
        buffer = None if operand is None else self._of.get(operand)
        if operand is None or buffer is None or self._pending[buffer] != 1:
            return None
        return buffer if _kind(operand) == _kind(value) is not None else None

    def _reused(self, value: ir.Value) -> int | None:
        """The memory of the tensor of the same shape and type that was freed last."""
        kind = _kind(value) if self._reuses else None
        return None if kind is None or not self._free[kind] else self._free[kind].pop()


def is_view(node: ir.Node) -> bool:
    """Whether `node` gives its first operand, in another shape perhaps, without copying it."""
    if node.domain != "":
        return False
    return node.op_type in _VIEWS or (node.op_type == "Transpose" and _is_read_transposed(node))


def _is_read_transposed(node: ir.Node) -> bool:
    """Whether only matrix products read the transposed matrices, which then read them as they lie."""
    (value,), rank = node.outputs, known.rank(node.outputs[0])
    users = [use.node for use in value.uses()]
    if rank is None or rank < 2 or not users or value.is_graph_output():
        return False
    perm = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
    swaps_last = perm == [*range(rank - 2), rank - 1, rank - 2]
    return swaps_last and all(user.op_type in ("MatMul", "Gemm") and user.domain == "" for user in users)


def _kind(value: ir.Value) -> object:
    """What two tensors have in common that may take the same memory; `None` where too little is known."""
    shape = known.static_shape(value)
    return None if shape is None or value.dtype is None else (shape, value.dtype.bitwidth)
