"""The weights by which Resize interpolates along one axis, as a matrix.

The operator itself knows them best: along one axis, it is run on tensors from whose results they can be read.
Whatever the mode, the coordinate transformation and the runtime's choices at the borders, these are the
weights of the forward node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnx_grad.builder import Builder

# Attributes that shape the weights of one axis; the extrapolation value is not a weight.
_WEIGHTING = (
    "antialias",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "mode",
    "nearest_mode",
)


@dataclass(frozen=True)
class Interpolated:
    """One axis that Resize interpolates along, by tensors of shape [1].

    Attributes:
        length: Its length before, int64.
        region: Start and end of what is cropped, as fractions of the axis; `None` for the whole axis.
        scale: The ratio of its lengths; `None` where a size is given.
        size: Its length afterwards, int64; `None` where a scale is given.
        deciding: Where the aspect ratio is kept, length and size of the axis that all take their scale from.
    """

    length: ir.Value
    region: tuple[ir.Value, ir.Value] | None
    scale: ir.Value | None
    size: ir.Value | None
    deciding: tuple[ir.Value, ir.Value] | None


def transposed_weights(op: Builder, node: ir.Node, axis: Interpolated) -> ir.Value:
    """Wᵀ for y = W·x along one axis, float32 [length of x, length of y]: the identity, resized in this way.

    In float32, as this is the only type that ONNX Runtime's CPU provider interpolates.
    """
    if axis.deciding is not None:
        return _with_scale_of_other(op, node, axis, *axis.deciding)
    position = op.Range(0, op.Squeeze(axis.length), 1)
    identity = op.Cast(op.Equal(op.Unsqueeze(position, [1]), position), to=ir.DataType.FLOAT)
    resized = op.Resize(
        op.Unsqueeze(identity, [0, 1]),
        None if axis.region is None else op.Concat(*axis.region, axis=0),
        axis.scale,
        axis.size,
        axes=[3],
        **_weighting(node),
    )
    return op.Squeeze(resized, [0, 1])


def _with_scale_of_other(
    op: Builder, node: ir.Node, axis: Interpolated, deciding_length: ir.Value, deciding_size: ir.Value
) -> ir.Value:
    """The same where another axis decides on the scale, which is not quite the ratio of this one's lengths.

    That other axis has to take part, and an identity for each of its positions would be large. A few combs
    tell the weights as well: all pixels that one pixel of y is made of lie within one period of the combs, so
    each comb has one tooth among them. One more row, of positions, tells where these pixels are.
    """
    # A cubic filter reaches two pixels to each side, farther by the shrinkage where antialiasing widens it.
    shrinkage = (deciding_length + deciding_size - 1) / deciding_size
    period = op.Squeeze(op.Mul(shrinkage, 4) + 8)
    position = op.Range(0, op.Squeeze(axis.length), 1)
    tooth = op.Mod(position, period)
    comb = op.Equal(op.Unsqueeze(op.Range(0, period, 1), [1]), tooth)
    places = op.Cast(op.Unsqueeze(position, [0]), to=ir.DataType.FLOAT)
    rows = op.Concat(places, op.Cast(comb, to=ir.DataType.FLOAT), axis=0)
    resized = op.Resize(
        op.Expand(op.Unsqueeze(rows, [0, 2]), op.Concat([1, 1], deciding_length, [1], axis=0)),
        None if axis.region is None else _behind_whole_axis(op, axis.region),
        None,
        op.Concat(deciding_size, axis.size, axis=0),
        # Counted as the node counts: ONNX Runtime 1.32 forgets the policy for axes counted from the end.
        axes=[-2, -1] if min(node.attributes.get_ints("axes", (0,))) < 0 else [2, 3],
        keep_aspect_ratio_policy=node.attributes["keep_aspect_ratio_policy"].value,
        **_weighting(node),
    )
    # The rows are the same all along the deciding axis: [rows of the comb and one more, length of y].
    resized = op.Squeeze(op.Gather(resized, 0, axis=2), [0])
    centres, weights = op.Gather(resized, [0]), op.Gather(resized, tooth + 1)
    distance = op.Abs(op.Transpose(places, perm=[1, 0]) - centres)
    reach = op.Cast(period, to=ir.DataType.FLOAT) * 0.5
    return weights * op.Cast(op.Less(distance, reach), to=ir.DataType.FLOAT)


def _behind_whole_axis(op: Builder, region: tuple[ir.Value, ir.Value]) -> ir.Value:
    """The region of two axes, of which the first is taken whole."""
    start, end = region
    zero, one = (op.Expand(op.scalar_like(number, start), [1]) for number in (0.0, 1.0))
    return op.Concat(zero, start, one, end, axis=0)


def _weighting(node: ir.Node) -> dict[str, Any]:
    return {name: node.attributes[name].value for name in _WEIGHTING if name in node.attributes}
