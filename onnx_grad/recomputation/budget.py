"""How to get along with a given amount of memory, at the least cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad.errors import InputError
from onnx_grad.memory.peak import PeakMemory, listed, megabytes, peak_memory, peak_of
from onnx_grad.memory.sizes import byte_size, sized
from onnx_grad.recomputation.checkpoints import Size, interior
from onnx_grad.recomputation.rematerialize import RECOMPUTES, rematerialize
from onnx_grad.recomputation.walk import BackwardPass

# Each element of what they give is a sum over many products; others cost about as much as to move memory.
_DEAR = frozenset(
    "Attention Conv ConvTranspose DeformConv Einsum FusedConv FusedGemm FusedMatMul GRU Gemm LSTM "
    "LinearAttention MatMul RNN".split()
)

# How many elements of memory are moved in the time of one product.
_PRODUCTS_PER_MOVE = 16


@dataclass(frozen=True)
class _Candidate:
    """A choice of values that are not kept, with the peak of memory and the work it leads to."""

    names: frozenset[str]
    peak: PeakMemory
    work: float


def fit(
    model: ir.Model, walk: BackwardPass, budget: int, sizes: Mapping[str, int] | None, size: Size
) -> set[ir.Value]:
    """What need not be kept so that the activations take `budget` bytes at most, at the least work.

    What is compared: everything but the results of products, and segments from few to many, each with all
    that is inside them or without the results of products.

    Args:
        model: The model, which is not changed.
        walk: Its graph.
        budget: A number of bytes.
        sizes: What the symbols in the shapes of the graph's inputs stand for.
        size: The size of a value.

    Raises:
        InputError: No choice is within the budget, or some sizes are not known.
    """
    kept = peak_memory(model, sizes=sizes)
    if kept.unsized:
        raise InputError(
            f"recompute: whether {megabytes(budget)} are enough cannot be told, because the sizes of these "
            f"tensors are not known: {listed(kept.unsized)}; give sizes={{…}} for the symbols in the "
            "shapes of the inputs, or recompute by name or 'sqrt' instead"
        )
    if kept.activations <= budget:
        return set()
    choices = dict.fromkeys(map(frozenset, _choices(walk, size)))
    tried = [_tried(model, walk, dropped, sizes) for dropped in choices]
    within = [candidate for candidate in tried if candidate.peak.activations <= budget]
    if not within:
        least = min([kept, *(candidate.peak for candidate in tried)], key=lambda peak: peak.activations)
        largest = [name for name, _ in least.largest]
        raise InputError(
            f"recompute: the activations cannot be made to fit into {megabytes(budget)} ({budget} bytes); "
            f"the least that recomputing reaches is {megabytes(least.activations)} "
            f"({least.activations} bytes), at node '{least.node}', where the largest are {listed(largest)}"
        )
    best = min(within, key=lambda candidate: (candidate.work, candidate.peak.activations))
    return {v for node in walk.forward for v in node.outputs if v.name in best.names}


def _choices(walk: BackwardPass, size: Size) -> Iterator[Set[ir.Value]]:
    cheap = {value for node in walk.forward if node.op_type not in _DEAR for value in node.outputs}
    yield walk.repeatable & cheap
    most = len(walk.kept) + 1
    counts = {round(most ** (step / _STEPS)) for step in range(1, _STEPS + 1)}
    for segments in sorted(counts - {0, 1}):
        inside = interior(walk, segments, size)
        yield inside
        yield inside & cheap


_STEPS = 6


def _tried(
    model: ir.Model, walk: BackwardPass, dropped: Set[ir.Value], sizes: Mapping[str, int] | None
) -> _Candidate:
    names = frozenset(value.name for value in dropped if value.name)
    copy = model.clone()
    copied = walk.copied(copy.graph)
    rematerialize(copied, {v for node in copied.forward for v in node.outputs if v.name in names})
    graph = sized(copy, sizes).graph
    work = sum(_work(node) for node in graph if RECOMPUTES in node.metadata_props)
    return _Candidate(names, peak_of(graph), work)


def _work(node: ir.Node) -> float:
    """About how long `node` takes, in elements of memory moved."""
    elements = [(byte_size(v) or 0) / 4 for v in (*node.inputs, *node.outputs) if v is not None]
    if node.op_type not in _DEAR:
        return sum(elements)
    # The products of a matrix product of n×k and k×m are the root of nk · km · nm.
    return math.sqrt(math.prod(sorted(elements)[-3:])) / _PRODUCTS_PER_MOVE + sum(elements)
