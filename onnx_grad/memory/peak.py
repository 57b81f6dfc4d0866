"""The most memory that the activations of a model take at once, estimated from its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.liveness import read_values
from onnx_grad.memory.buffers import Buffer, plan_buffers
from onnx_grad.memory.execution_order import execution_order
from onnx_grad.memory.optimized import as_optimized
from onnx_grad.memory.sizes import sized, total_bytes
from onnx_grad.prepare.load import Model
from onnx_grad.repeatable import is_random
from onnx_grad.wiring import bodies

_SHOWN = 8


@dataclass(frozen=True)
class PeakMemory:
    """The memory of a model while it runs on ONNX Runtime, in bytes.

    Attributes:
        activations: What the tensors inside the graph take together at the peak.
        node: The node at which the peak is.
        largest: The tensors that are alive there with their bytes, the largest first.
        idle: What of it nothing lies in at the peak: memory that is held for a later tensor.
        inputs: What the inputs of the graph take.
        outputs: What its outputs take.
        weights: What its initializers take.
        unsized: Tensors of unknown size, which are counted as nothing.
    """

    activations: int
    node: str
    largest: tuple[tuple[str, int], ...]
    idle: int
    inputs: int
    outputs: int
    weights: int
    unsized: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"activations take {megabytes(self.activations)} at the peak, at node '{self.node}'"]
        lines += [f"  {megabytes(size):>10}  {name}" for name, size in self.largest[:_SHOWN]]
        if len(self.largest) > _SHOWN:
            rest = sum(size for _, size in self.largest[_SHOWN:])
            lines.append(f"  {megabytes(rest):>10}  {len(self.largest) - _SHOWN} others")
        if self.idle:
            lines.append(
                f"  {megabytes(self.idle):>10}  held for tensors to come (not with enable_mem_reuse = False)"
            )
        lines.append(
            f"besides: inputs {megabytes(self.inputs)}, outputs {megabytes(self.outputs)}, "
            f"weights {megabytes(self.weights)}"
        )
        if self.unsized:
            lines.append(f"not counted, of unknown size: {listed(self.unsized)}")
        return "\n".join(lines)


def peak_memory(
    model: Model, *, sizes: Mapping[str, int] | None = None, reuse: bool = True, optimized: bool = False
) -> PeakMemory:
    """Estimate how much memory the activations of `model` take at most, without running it.

    The nodes are gone through in the order in which ONNX Runtime runs them, and tensors share memory as it
    lets them. Scratch memory of its kernels, and what is inside the bodies of `If`, `Loop` and `Scan`, is not
    counted.

    ONNX Runtime fuses nodes first, which can change that order. With `optimized`, it is asked for the graph
    that it makes of the model; else the graph is taken as it is.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`: a gradient model, or any other.
        sizes: What the symbols in the shapes of its inputs stand for, as in `{"batch": 32}`.
        reuse: Whether ONNX Runtime plans for tensors of one shape to take the same memory one after the
            other, as it does by default (`SessionOptions.enable_mem_reuse`); it is held in between.
        optimized: Whether to have ONNX Runtime optimise the model for its CPU provider, at the level
            `EXTENDED`; it has to be installed then, and reads all weights.

    Raises:
        InputError: A symbol is in no input of the model, or its size is not a number of elements.
        ModelError: The model is damaged or inconsistent.
        RuntimeUnavailableError: With `optimized`, ONNX Runtime is not there or has no kernel for an operator.
    """
    as_written = sized(model, sizes)
    if not optimized:
        return peak_of(as_written.graph, reuse)
    graph = as_optimized(as_written).graph
    return _peak_in_order(graph, list(graph), reuse)


def peak_of(graph: ir.Graph, reuse: bool = True) -> PeakMemory:
    """The estimate for a graph whose values have their shapes."""
    constants = {v for v in graph.initializers.values() if not v.is_graph_input()}
    return _peak_in_order(
        graph, execution_order([node for node in graph if not _is_folded(node, constants)]), reuse
    )


def _peak_in_order(graph: ir.Graph, order: list[ir.Node], reuse: bool) -> PeakMemory:
    buffers, unsized = plan_buffers(graph, order, reuse)
    place, total = _peak(buffers, len(order))
    alive = [(name, buffer.size) for buffer in buffers if buffer.size and (name := _tensor_in(buffer, place))]
    return PeakMemory(
        activations=total,
        node=str(order[place].name) if order else "",
        largest=tuple(sorted(alive, key=lambda entry: -entry[1])),
        idle=total - sum(size for _, size in alive),
        inputs=total_bytes(v for v in graph.inputs if not v.is_initializer()),
        outputs=total_bytes(graph.outputs),
        weights=sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None),
        unsized=tuple(unsized),
    )


def _is_folded(node: ir.Node, constants: set[ir.Value]) -> bool:
    """Whether ONNX Runtime computes `node` before the model runs; its outputs are `constants` then."""
    is_constant = all(value in constants for value in read_values(node))
    operand = node.inputs[0] if node.op_type == "Shape" else None
    is_static = operand is not None and known.static_shape(operand) is not None
    if not (is_constant or is_static) or is_random(node) or next(bodies(node), None) is not None:
        return False
    constants.update(node.outputs)
    return True


def _peak(buffers: list[Buffer], steps: int) -> tuple[int, int]:
    """The position of the node at which most memory is in use, and how much that is."""
    change = [0] * (steps + 1)
    for buffer in buffers:
        change[buffer.first] += buffer.size
        change[buffer.last + 1] -= buffer.size
    place = total = most = 0
    for position, step in enumerate(change):
        total += step
        if total > most:
            place, most = position, total
    return place, most


def _tensor_in(buffer: Buffer, place: int) -> str | None:
    """The tensor that lies in a buffer when the node at `place` runs, rather than a view of it."""
    return next((name for name, first, last in buffer.tensors if first <= place <= last), None)


def megabytes(size: int) -> str:
    """Bytes for reading."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"


def listed(names: Sequence[str]) -> str:
    """The first names of many."""
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
