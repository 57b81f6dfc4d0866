"""Normalization over the trailing axes: LayerNormalization, RMSNormalization.

Both are Y = scale·d·r with r = 1/√(mean(d²) + ε), where d = x − mean(x) or d = x. Half precision is computed
in single.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.axes import trailing_count
from onnx_grad.rules.precision import widen


@gradient("LayerNormalization")
def layer_normalization(
    op: Builder,
    node: ir.Node,
    dy: ir.Value | None,
    d_mean: ir.Value | None,
    d_inverse: ir.Value | None,
) -> Sequence[InputCotangent]:
    """Y = scale·d·r + B, d = x − μ: dX = r·(g − mean(g) − d·r²·mean(g·d)) with g = dY·scale.

    The cotangents of the outputs μ and r = 1/√(mean(d²) + ε) add dμ/n − d·r³·dr/n, for means of n elements.
    """
    layer = Layer.of(op, node)
    bias = known.optional_operand(node, 2)
    mean, r = _statistics(op, node, layer)
    d = layer.wide(layer.x) - mean

    def dx() -> ir.Value:
        parts = []
        if dy is not None:
            g = layer.wide(dy) * layer.wide(layer.scale)
            parts.append(r * (g - layer.scaled_mean(dy) - d * layer.slope(dy, d, r)))
        if d_inverse is not None:
            parts.append(d * (layer.wide(d_inverse) * r * r * r / -layer.count))
        if d_mean is not None:
            share = layer.wide(d_mean) / layer.count
            parts.append(share if parts else op.Expand(share, op.shape(layer.x)))
        return op.CastLike(functools.reduce(operator.add, parts), layer.x)

    if dy is None:
        return (dx,)
    d_scale = functools.partial(layer.d_scale, dy, d, r)
    if bias is None:
        return dx, d_scale
    return dx, d_scale, lambda: undo_broadcast(op, dy, bias, node.outputs[0])


@gradient("RMSNormalization")
def rms_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = scale·x·r with r = 1/√(mean(x²) + ε): dX = r·(g − x·r²·mean(g·x)) with g = dY·scale."""
    layer = Layer.of(op, node)
    return rms_cotangents(layer, layer.inverse_root_mean_square(layer.wide(layer.x)), dy)


def rms_cotangents(
    layer: Layer, r: ir.Value, dy: ir.Value | None, d_inverse: ir.Value | None = None
) -> Sequence[InputCotangent]:
    """Those of x and of the scale where Y = scale·x·r; the cotangent of r adds −x·r³·dr/n."""
    x = layer.wide(layer.x)

    def dx() -> ir.Value:
        parts = []
        if dy is not None:
            g = layer.wide(dy) * layer.wide(layer.scale)
            parts.append(r * (g - x * layer.slope(dy, x, r)))
        if d_inverse is not None:
            parts.append(x * (layer.wide(d_inverse) * r * r * r / -layer.count))
        return layer.op.CastLike(functools.reduce(operator.add, parts), layer.x)

    if dy is None:
        return (dx,)
    return dx, functools.partial(layer.d_scale, dy, x, r)


def _statistics(op: Builder, node: ir.Node, layer: Layer) -> tuple[ir.Value, ir.Value]:
    """The mean and r: outputs of the node itself, unless they are less precise than x."""
    single = node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT
    if single and layer.x.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        mean, r = (op.optional_output(node, i, ir.DataType.FLOAT) for i in (1, 2))
        return mean, r
    x = layer.wide(layer.x)
    mean = layer.mean(x)
    return mean, layer.inverse_root_mean_square(x - mean)


class Layer:
    """The axes and the scale of a normalization, and means and sums over them.

    Args:
        op: Builds the nodes.
        x: What is normalized.
        scale: The scale, of a shape that broadcasts to that of `x`.
        y: The result, or any value of its shape.
        axis: The first normalized axis.
        epsilon: What is added to the mean square.
    """

    def __init__(
        self, op: Builder, x: ir.Value, scale: ir.Value, y: ir.Value, axis: int, epsilon: float
    ) -> None:
        self.op, self.x, self.scale = op, x, scale
        self.y, self.axis, self.epsilon = y, axis, epsilon
        rank = known.rank(x)
        if axis >= 0 and rank is not None:
            self.axis -= rank
        self.count = trailing_count(op, x, self.axis, like=self.wide(x))

    @classmethod
    def of(cls, op: Builder, node: ir.Node) -> Layer:
        """That of a node whose first inputs are x and the scale."""
        axis, epsilon = node.attributes.get_int("axis", -1), node.attributes.get_float("epsilon", 1e-5)
        return cls(op, known.operand(node, 0), known.operand(node, 1), node.outputs[0], axis, epsilon)

    def wide(self, value: ir.Value) -> ir.Value:
        """`value` in the precision of the computation."""
        return widen(self.op, value, self.x)

    def inverse_root_mean_square(self, d: ir.Value) -> ir.Value:
        """1/√(mean(d²) + ε)."""
        return self.op.Reciprocal(self.op.Sqrt(self.mean(d * d) + self.epsilon))

    def mean(self, value: ir.Value) -> ir.Value:
        """The mean over the normalized axes, which are kept with length 1."""
        axes: list[int] | ir.Value = [*range(self.axis, 0)]
        if self.axis >= 0:
            axes = self.op.Range(self.axis, self.op.Size(self.op.Shape(self.x)), 1)
        return self.op.ReduceMean(value, axes, keepdims=1)

    def scaled_mean(self, value: ir.Value) -> ir.Value:
        """mean(value·scale): a product with a vector where the scale has the normalized axis alone."""
        value, scale = self.wide(value), self.wide(self.scale)
        if not self._scale_is_vector():
            return self.mean(value * scale)
        return self.op.MatMul(value, self.op.Unsqueeze(scale / self.count, [1]))

    def slope(self, dy: ir.Value, d: ir.Value, r: ir.Value) -> ir.Value:
        """r²·mean(g·d)."""
        return self.scaled_mean(self.wide(dy) * d) * (r * r)

    def d_scale(self, dy: ir.Value, d: ir.Value, r: ir.Value) -> ir.Value:
        """Σ dY·x̂: a product with r as a vector where the scale has the normalized axis alone."""
        op, product = self.op, self.wide(dy) * d
        if self._scale_is_vector():
            total = op.MatMul(op.Reshape(r, [-1]), op.Flatten(product, axis=-1))
        else:
            total = undo_broadcast(op, product * r, self.scale, self.y)
        return op.CastLike(total, self.scale)

    def _scale_is_vector(self) -> bool:
        """Whether the scale is certainly a vector along the last axis, the only one that is normalized."""
        own, dims = known.dimensions(self.scale), known.dimensions(self.x)
        if self.axis != -1 or own is None or len(own) != 1:
            return False
        if isinstance(own[0], int):
            return own[0] != 1
        return dims is not None and known.same_dimension(own[0], dims[-1])
