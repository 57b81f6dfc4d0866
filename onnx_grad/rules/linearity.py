"""Operators that are linear: applied to tangents of their operands, they give the tangent of their result.

They have rules as all others do, and tangents would follow from those as well. This saves the detour where an
operator is its own best formula, as a convolution is.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import linear

# What a dimension is taken for that is not known: batches and sequences are long.
_LONG = 512


def _one_product(op: Builder, node: ir.Node, da: ir.Value, db: ir.Value) -> ir.Value | None:
    """Y = A·B: Ẏ = Ȧ·B + A·Ḃ = [Ȧ A]·[B; Ḃ], where joining operands moves less than adding products does.

    Joined, (m + n)·k numbers are read and written twice; added, m·n are read twice and written once.
    """
    a, b = known.operand(node, 0), known.operand(node, 1)
    rows, columns = known.dimensions(a), known.dimensions(b)
    if rows is None or columns is None or min(len(rows), len(columns)) < 2 or not isinstance(rows[-1], int):
        return None
    m, n = (dim if isinstance(dim, int) else _LONG for dim in (rows[-2], columns[-1]))
    if 4 * (m + n) * rows[-1] > 3 * m * n:
        return None
    return op.MatMul(op.Concat(da, a, axis=-1), op.Concat(b, db, axis=-2))


linear("Add", "Mean", "Sub", "Sum", together=None, broadcasts=True)
linear("Where", together=(1, 2), broadcasts=True)
linear(
    "AveragePool",
    "Cast",
    "CastLike",
    "Col2Im",
    "Compress",
    "CumSum",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "GlobalAveragePool",
    "Identity",
    "Neg",
    "ReduceMean",
    "ReduceSum",
    "Reshape",
    "ReverseSequence",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    together=(0,),
)
linear("OneHot", together=(2,))
linear("Pad", together=(0,), added=(2,))
linear("Concat", together=None)
linear("Mul", factors=(0, 1), broadcasts=True)
linear("MatMul", factors=(0, 1), joined=_one_product)
linear("Einsum", factors=None)
linear("Conv", "ConvTranspose", "Gemm", factors=(0, 1), added=(2,))


def _combines(node: ir.Node) -> bool:
    """Whether a scattering node multiplies or compares what is there with what arrives."""
    return node.attributes.get_string("reduction", "none") not in ("none", "add")


linear("ScatterElements", "ScatterND", together=(0, 2), unless=_combines)


def _adds_constant(node: ir.Node) -> bool:
    """Whether a resizing node gives a constant beyond the borders."""
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return mode == "tf_crop_and_resize"


linear("Resize", together=(0,), unless=_adds_constant)
