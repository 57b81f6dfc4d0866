"""The batch axis folded into another axis, and remembered there.

One operator after the other works on images with the batch folded in. So that no operator has to fold what
the one before it has unfolded, a batch knows what it was unfolded from; operators on elements work on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import from_front, merged, split, to_front
from onnx_grad.batching.extents import Part, extents
from onnx_grad.builder import Builder

# Where the `meta` of a batch says what it was unfolded from.
_KEY = "onnx_grad.fold"


@dataclass(frozen=True)
class Fold:
    """What a batch was unfolded from.

    Attributes:
        value: The batch folded into `axis` of each example.
        axis: That axis.
        lengths: The lengths of the batch axis, and of the axis.
    """

    value: ir.Value
    axis: int
    lengths: Sequence[Part]


def fold_of(batch: ir.Value) -> Fold | None:
    """What `batch` was unfolded from; `None` where it was not."""
    found = batch.meta.get(_KEY)
    return found if isinstance(found, Fold) else None


def lengths_of(batch: ir.Value, axis: int) -> list[Part]:
    """The lengths of the batch axis and of `axis` of each example, read where they were first."""
    fold = fold_of(batch)
    if fold is not None and fold.axis == axis:
        return list(fold.lengths)
    return [*extents(batch, 0, 1), *extents(batch, axis + 1, axis + 2)]


def folded_into(op: Builder, batch: ir.Value, axis: int) -> ir.Value:
    """A batch with its first axis folded into `axis` of each example."""
    fold = fold_of(batch)
    if fold is not None and fold.axis == axis:
        return fold.value
    return merged(op, from_front(op, batch, axis), axis)


def unfolded_from(op: Builder, value: ir.Value, axis: int, lengths: Sequence[Part]) -> ir.Value:
    """The batch that was folded into `axis`.

    Args:
        op: Builds the graph.
        value: It has both in one axis.
        axis: The axis.
        lengths: The lengths of the two.
    """
    batch = to_front(op, split(op, value, lengths, axis), axis)
    batch.meta[_KEY] = Fold(value, axis, tuple(lengths))
    return batch


def common_fold(batches: Sequence[ir.Value], examples: Sequence[ir.Value]) -> Fold | None:
    """The fold of the first of some batches, where all have the same and the examples are of one shape."""
    folds = [fold_of(batch) for batch in batches]
    first = folds[0] if folds else None
    if first is None or any(fold is None or fold.axis != first.axis for fold in folds):
        return None
    same = all(known.same_shape(examples[0], example) for example in examples[1:])
    return first if same else None
