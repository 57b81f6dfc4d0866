"""Operators that are linear: applied to tangents of their operands, they give the tangent of their result.

They have rules as all others do, and tangents would follow from those as well. This saves the detour where an
operator is its own best formula, as a convolution is.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.registry import linear

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
linear("MatMul", factors=(0, 1))
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
