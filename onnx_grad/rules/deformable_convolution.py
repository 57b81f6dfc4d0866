"""Deformable convolution: DeformConv.

The rule builds the convolution out of parts that have rules of their own. T is the number of taps of the
kernel, L that of windows, and the channels of an offset group count as images of their own:

- the taps' places in the image, moved by the offsets, are the grid [N·groups, T, L, 2] of a `GridSample`,
- its samples [N·groups, C/groups, T, L] times the mask are the columns of a matrix,
- which the weights are multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, Thunk, gradient
from onnx_grad.rules.axes import sum_by_channel
from onnx_grad.rules.precision import widen
from onnx_grad.rules.sampling import grid_sample
from onnx_grad.rules.windows import explicit_padding, given, sizes_attribute, spatial_rank


def _refusal(node: ir.Node) -> str | None:
    if spatial_rank(node) not in (None, 2):
        return (
            "DeformConv is differentiated in two dimensions only, as ONNX Runtime runs it in no others; cut "
            "the flow with stop=[…]"
        )
    return None


@gradient("DeformConv", refuses=_refusal)
def deform_conv(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = w·(mask·samples) + b: dw = dy·(mask·samples)ᵀ, db = Σ dy, wᵀ·dy goes back to samples and mask."""
    parts = _Parts(op, node, dy)
    cotangents = (parts.dx, parts.dw, parts.doffset, parts.dbias, parts.dmask)
    return cotangents[: len(node.inputs)]


class _Parts:
    """What the convolution is made of, and the cotangents of its inputs."""

    def __init__(self, op: Builder, node: ir.Node, dy: ir.Value) -> None:
        self.op, self.node = op, node
        self.x, self.w, offset = (known.operand(node, index) for index in range(3))
        # Half precision cannot tell where in a large image a tap lies.
        self.offset = widen(op, offset, offset)
        self.mask = known.optional_operand(node, 4)
        self.group = node.attributes.get_int("group", 1)
        self.offset_group = node.attributes.get_int("offset_group", 1)
        self.batch = op.Shape(self.x, end=1)
        self.images = op.Mul(self.batch, self.offset_group)
        self.taps = op.ReduceProd(op.Shape(self.w, start=2), keepdims=1)
        self.windows = op.ReduceProd(op.Shape(dy, start=2), keepdims=1)
        self.lengths = op.Unsqueeze(op.CastLike(op.Shape(self.x, start=2), self.offset), [1])
        self.dy = dy
        self.responses = self._reshaped(dy, self.batch, [self.group], self._filters_per_group(), self.windows)

    def dx(self) -> ir.Value:
        """Of the image, back through the sampling."""
        dimages, _ = self._before_sampling()
        return self.op.reshape_like(dimages, self.x)

    def dw(self) -> ir.Value:
        """Of the weights."""
        op = self.op
        columns = op.Transpose(self._in_groups(self._masked(self._samples())), perm=[0, 1, 3, 2])
        total = op.ReduceSum(op.MatMul(self.responses, columns), [0], keepdims=0)
        return op.reshape_like(total, self.w)

    def doffset(self) -> ir.Value:
        """Of the offsets, which are the grid's points in pixels instead of halves of the image."""
        op = self.op
        _, dgrid = self._before_sampling()
        places = op.Transpose(op.Gather(dgrid, [1, 0], axis=3), perm=[0, 1, 3, 2])
        doffset = op.reshape_like(places * (2.0 / self.lengths), self.offset)
        return op.CastLike(doffset, known.operand(self.node, 2))

    def dbias(self) -> ir.Value:
        """Of the bias."""
        return sum_by_channel(self.op, self.dy, self.node.outputs[0])

    def dmask(self) -> ir.Value:
        """Of the mask, which all channels of an offset group share."""
        op = self.op
        assert self.mask is not None
        return op.reshape_like(op.ReduceSum(self._dcolumns() * self._samples(), [1], keepdims=0), self.mask)

    def _samples(self) -> ir.Value:
        op = self.op
        channels = op.Div(op.Shape(self.x, start=1, end=2), self.offset_group)
        images = self._reshaped(self.x, self.images, channels, op.Shape(self.x, start=2))
        return op.GridSample(
            images, self._grid(), align_corners=0, mode="bilinear" if op.opset < 20 else "linear"
        )

    def _grid(self) -> ir.Value:
        """The places of the taps as `GridSample` wants them: x before y, from −1 to 1 between the borders."""
        op = self.op
        rows, columns = self._undeformed(0), self._undeformed(1)
        lattice = op.Concat(
            *(op.Shape(places, start=i, end=i + 1) for i in (0, 1) for places in (rows, columns)), axis=0
        )
        axes = [
            op.Expand(op.Unsqueeze(rows, [1, 3]), lattice),
            op.Expand(op.Unsqueeze(columns, [0, 2]), lattice),
        ]
        undeformed = op.Concat(
            *(self._reshaped(places, self.taps, [1], self.windows) for places in axes), axis=1
        )
        places = self._reshaped(self.offset, self.images, self.taps, [2], self.windows) + undeformed
        points = (places * 2.0 + 1.0) / self.lengths - 1.0
        grid = op.Gather(op.Transpose(points, perm=[0, 1, 3, 2]), [1, 0], axis=3)
        grid.shape = ir.Shape([None, None, None, 2])
        return grid

    def _undeformed(self, axis: int) -> ir.Value:
        """Where the taps of each window lie along an axis without offsets, [kernel, windows]."""
        op, node = self.op, self.node
        stride = given(sizes_attribute(node, "strides", 1, 2))[axis]
        dilation = given(sizes_attribute(node, "dilations", 1, 2))[axis]
        begin = explicit_padding(node, 2)[0][axis]
        kernel, count = (op.Squeeze(op.Shape(v, start=axis + 2, end=axis + 3)) for v in (self.w, self.dy))
        taps, first = op.Range(0, kernel, 1) * dilation, op.Range(0, count, 1) * stride - begin
        return op.CastLike(op.Unsqueeze(taps, [1]) + op.Unsqueeze(first, [0]), self.offset)

    def _masked(self, values: ir.Value) -> ir.Value:
        if self.mask is None:
            return values
        return values * self._reshaped(self.mask, self.images, [1], self.taps, self.windows)

    def _in_groups(self, columns: ir.Value) -> ir.Value:
        rows = self.op.ReduceProd(self.op.Shape(self.w, start=1), keepdims=1)
        return self._reshaped(columns, self.batch, [self.group], rows, self.windows)

    def _filters_per_group(self) -> ir.Value:
        return self.op.Div(self.op.Shape(self.w, end=1), self.group)

    def _dcolumns(self) -> ir.Value:
        """wᵀ·dy, of the shape of the samples."""
        op = self.op
        rows = op.ReduceProd(op.Shape(self.w, start=1), keepdims=1)
        filters = self._reshaped(self.w, [self.group], self._filters_per_group(), rows)
        columns = op.MatMul(op.Transpose(filters, perm=[0, 2, 1]), self.responses)
        return op.Reshape(columns, op.Shape(self._samples()), allowzero=1)

    def _before_sampling(self) -> tuple[ir.Value, ir.Value]:
        """The cotangents of the images and of the grid."""
        sampling = self._samples().producer()
        assert sampling is not None
        dsamples = self._masked(self._dcolumns())
        dimages, dgrid = cast(Sequence[Thunk], grid_sample(self.op, sampling, dsamples))
        return given(dimages()), given(dgrid())

    def _reshaped(self, value: ir.Value, *shape: ir.Value | Sequence[int]) -> ir.Value:
        return self.op.Reshape(value, self.op.Concat(*shape, axis=0), allowzero=1)
