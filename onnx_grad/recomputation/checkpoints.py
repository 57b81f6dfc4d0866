"""Where to cut a forward pass into segments of which only the beginnings are kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import onnx_ir as ir

from onnx_grad.liveness import read_values
from onnx_grad.recomputation.walk import BackwardPass

Size = Callable[[ir.Value], float]


def interior(walk: BackwardPass, segments: int, size: Size) -> set[ir.Value]:
    """The activations that need not be kept when the forward pass is cut into `segments`.

    The cuts share evenly what the backward pass reads, but each is moved, by half a segment at most, to where
    the least is alive. What crosses a cut is kept, and so is the last segment, which would be computed again
    as soon as it has been computed; all else is computed again.

    Args:
        walk: The graph.
        segments: How many segments.
        size: The size of a value.
    """
    last_reads = {value: place for place, node in enumerate(walk.forward) for value in read_values(node)}
    cuts = _cuts(walk, segments, size, last_reads)
    end = max(cuts, default=0)
    return {
        value
        for place, node in enumerate(walk.forward[:end])
        for value in node.outputs
        if value in walk.repeatable and not any(place < cut <= last_reads.get(value, -1) for cut in cuts)
    }


def _cuts(walk: BackwardPass, segments: int, size: Size, last_reads: dict[ir.Value, int]) -> list[int]:
    """The positions before which the forward nodes are cut."""
    alive = _alive(walk, size, last_reads)
    kept = list(
        accumulate(sum(size(value) for value in node.outputs if value in walk.kept) for node in walk.forward)
    )
    share = kept[-1] / segments
    cuts = set()
    for ideal in (share * index for index in range(1, segments)):
        near = [p for p in range(1, len(kept)) if ideal - share / 2 < kept[p - 1] <= ideal + share / 2]
        if near:
            cuts.add(min(near, key=lambda p: (alive[p], abs(kept[p - 1] - ideal))))
    return sorted(cuts)


def _alive(walk: BackwardPass, size: Size, last_reads: dict[ir.Value, int]) -> list[float]:
    """The size of the activations that forward nodes still read, before each of them."""
    change = [0.0] * (len(walk.forward) + 1)
    for place, node in enumerate(walk.forward):
        for value in node.outputs:
            if value in walk.activations and value in last_reads:
                change[place + 1] += size(value)
                change[last_reads[value] + 1] -= size(value)
    return list(accumulate(change))
