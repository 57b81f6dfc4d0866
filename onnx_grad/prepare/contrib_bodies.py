"""Functions in onnx's text form with the shapes and types that onnx's own inference does not give.

Their inputs are x0, x1, … and their outputs y0, y1, …; what they compute does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx
from onnx.defs import AI_ONNX_PREVIEW_TRAINING_DOMAIN

from onnx_grad.prepare.nodes import auto_pad, integer, integers

Lines = Iterator[str]
Body = Callable[[onnx.NodeProto], Lines]

_MICROSOFT = "com.microsoft"
_WINDOWS = ("kernel_shape", "strides", "dilations", "pads")


def _fixed(*lines: str) -> Body:
    """A body that is the same for every node."""
    return lambda node: iter(lines)


def _has(node: onnx.NodeProto, index: int) -> bool:
    return index < len(node.input) and bool(node.input[index])


def _ints(name: str, values: Sequence[int]) -> str:
    return f"{name} = Constant<value_ints: ints = [{', '.join(map(str, values))}]>()"


def _of_dtype(name: str, like: str) -> Lines:
    """A value of the type of `like`, of which not even the rank is known."""
    yield f"{name}_found = NonZero({like})"
    yield _ints(f"{name}_first", [0])
    yield f"{name}_shape = ReduceMax<keepdims: int = 0>({name}_found, {name}_first)"
    yield f"{name} = Reshape({like}, {name}_shape)"


def _of_unknown_length(name: str, like: str, axis: int) -> Lines:
    """A value of the shape of `like`, save for its length along an axis."""
    yield f"{name}_largest = ReduceMax<keepdims: int = 0>({like})"
    yield f"{name}_number = Cast<to: int = 7>({name}_largest)"
    yield _ints(f"{name}_zero", [0])
    yield f"{name}_end = Unsqueeze({name}_number, {name}_zero)"
    yield _ints(f"{name}_axis", [axis])
    yield f"{name}_part = Slice({like}, {name}_zero, {name}_end, {name}_axis)"
    yield f"{name} = Concat<axis: int = {axis}>({like}, {name}_part)"


def _by_head(name: str, packed: str, number: int) -> Lines:
    """[batch, sequence, heads·size] as [batch, heads, sequence, size]."""
    yield _ints(f"{name}_split", [0, 0, number, -1])
    yield f"{name}_by_position = Reshape({packed}, {name}_split)"
    yield f"{name} = Transpose<perm: ints = [0, 2, 1, 3]>({name}_by_position)"


def _matmul(node: onnx.NodeProto) -> Lines:
    if integer(node, "transBatchA") or integer(node, "transBatchB"):
        yield from _of_dtype("y0", "x0")
        return
    for index, name in enumerate("AB"):
        turned = 'Einsum<equation: string = "...ij->...ji">' if integer(node, f"trans{name}") else "Identity"
        yield f"factor{index} = {turned}(x{index})"
    yield "y0 = MatMul(factor0, factor1)"


def _gemm(node: onnx.NodeProto) -> Lines:
    turned = ", ".join(f"{name}: int = {integer(node, name)}" for name in ("transA", "transB"))
    yield f"y0 = Gemm<{turned}>(x0, x1)"


def _convolution(node: onnx.NodeProto, x: str, y: str) -> str:
    attributes = [f'auto_pad: string = "{auto_pad(node)}"', f"group: int = {integer(node, 'group', 1)}"]
    attributes += [f"{name}: ints = {given}" for name in _WINDOWS if (given := integers(node, name, ()))]
    return f"{y} = Conv<{', '.join(attributes)}>({x}, x1)"


def _conv(node: onnx.NodeProto) -> Lines:
    yield _convolution(node, "x0", "y0")


def _nhwc_conv(node: onnx.NodeProto) -> Lines:
    rank = 2 + next((len(given) for name in _WINDOWS[:3] if (given := integers(node, name, ()))), 2)
    yield f"image = Transpose<perm: ints = {[0, rank - 1, *range(1, rank - 1)]}>(x0)"
    yield _convolution(node, "image", "response")
    yield f"y0 = Transpose<perm: ints = {[0, *range(2, rank), 1]}>(response)"


def _simplified_layer_normalization(node: onnx.NodeProto) -> Lines:
    axis = integer(node, "axis", -1)
    yield "y0 = CastLike(x0, x1)"
    yield "wide = Cast<to: int = 1>(x0)"
    if axis < 0:
        yield _ints("axes", [*range(axis, 0)])
        yield "y1 = ReduceMean(wide, axes)"
    else:
        yield from _of_dtype("y1", "wide")


def _attention(node: onnx.NodeProto) -> Lines:
    sizes, number = integers(node, "qkv_hidden_sizes", ()), integer(node, "num_heads")
    yield "product = MatMul(x0, x1)"
    if sizes:
        yield _ints("sizes", sizes)
        yield "q, k, y0 = Split<axis: int = -1>(product, sizes)"
    else:
        yield "q, k, y0 = Split<axis: int = -1, num_outputs: int = 3>(product)"
    yield from _by_head("heads", "y0", number)
    yield _ints("first", [0])
    yield "new = Unsqueeze(heads, first)"
    yield "both = Concat<axis: int = 0>(new, new)"
    yield "y1 = Concat<axis: int = 3>(x4, both)" if _has(node, 4) else "y1 = Identity(both)"


def _multi_head_attention(node: onnx.NodeProto) -> Lines:
    if not _has(node, 1):
        yield "q, k, v = Split<axis: int = 3, num_outputs: int = 3>(x0)"
        yield _ints("packed", [0, 0, -1])
        yield "y0 = Reshape(q, packed)"
    else:
        yield from _of_unknown_length("y0", "x0", 2)
    for index in (1, 2):
        if _has(node, 5 + index):
            yield from _of_unknown_length(f"y{index}", f"x{5 + index}", 2)
        else:
            yield from _of_dtype(f"y{index}", "x0")
    yield from _of_dtype("y3", "x0")


def _group_query_attention(node: onnx.NodeProto) -> Lines:
    queries, keys = integer(node, "num_heads"), integer(node, "kv_num_heads")
    if _has(node, 1):
        yield "y0 = Identity(x0)"
        yield from _by_head("k", "x1", keys)
    else:
        yield from _by_head("all", "x0", queries + 2 * keys)
        yield _ints("numbers", [queries, keys, keys])
        yield "q, k, v = Split<axis: int = 1>(all, numbers)"
        yield "by_position = Transpose<perm: ints = [0, 2, 1, 3]>(q)"
        yield _ints("packed", [0, 0, -1])
        yield "y0 = Reshape(by_position, packed)"
    for index in (1, 2):
        if _has(node, 2 + index):
            yield from _of_unknown_length(f"y{index}", f"x{2 + index}", 2)
        else:
            yield f"y{index} = Identity(k)"
    yield from _of_dtype("y3", "x0")


def _quantized_matmul(node: onnx.NodeProto) -> Lines:
    shape = integer(node, "K"), integer(node, "N")
    yield _ints("shape", shape)
    yield "zeros = ConstantOfShape(shape)"
    yield "weights = CastLike(zeros, x0)"
    yield "y0 = MatMul(x0, weights)"


def _gather_block_quantized(node: onnx.NodeProto) -> Lines:
    """The indices stand before the other axes of the table; bytes hold several numbers of the last one."""
    yield "rows = Gather(x2, x1)"
    yield from (
        _of_unknown_length("y0", "rows", -1) if not integer(node, "gather_axis") else _of_dtype("y0", "x2")
    )


def _range(node: onnx.NodeProto) -> Lines:
    yield "start = Squeeze(x0)"
    yield "limit = Squeeze(x1)"
    yield "y0 = Range(start, limit, start)"


def _quantize(node: onnx.NodeProto) -> Lines:
    yield "y0 = CastLike(x0, x2)" if _has(node, 2) else "y0 = Cast<to: int = 2>(x0)"


def _quantized_gemm(node: onnx.NodeProto) -> Lines:
    """Without a scale of its own, the result is of floats."""
    turned = ", ".join(f"{name}: int = {integer(node, name)}" for name in ("transA", "transB"))
    yield "a = Identity(x0)" if _has(node, 7) else "a = CastLike(x0, x1)"
    yield "b = CastLike(x3, a)"
    yield f"y0 = Gemm<{turned}>(a, b)"


def _quantized_concat(node: onnx.NodeProto) -> Lines:
    operands = ", ".join(f"x{index}" for index in range(2, len(node.input), 3))
    yield f"y0 = Concat<axis: int = {integer(node, 'axis')}>({operands})"


def _quantized_pooling(node: onnx.NodeProto) -> Lines:
    if integer(node, "channels_last"):
        yield from _of_dtype("y0", "x0")
        return
    attributes = [f'auto_pad: string = "{auto_pad(node)}"', f"ceil_mode: int = {integer(node, 'ceil_mode')}"]
    attributes += [f"{name}: ints = {given}" for name in _WINDOWS if (given := integers(node, name, ()))]
    yield f"y0 = MaxPool<{', '.join(attributes)}>(x0)"


def _quantized_global_pooling(node: onnx.NodeProto) -> Lines:
    if integer(node, "channels_last"):
        yield from _of_dtype("y0", "x0")
    else:
        yield "y0 = GlobalMaxPool(x0)"


_SAME = _fixed("y0 = Identity(x0)")
_SKIP = _fixed(
    "y0 = Identity(x0)",
    "wide = Cast<to: int = 1>(x0)",
    _ints("axes", [-1]),
    "y1 = ReduceMean(wide, axes)",
    "y2 = ReduceMean(wide, axes)",
    "y3 = Identity(x0)",
)

_CONTRIBUTED: dict[str, Body] = {
    "Attention": _attention,
    "BiasAdd": _SAME,
    "BiasGelu": _SAME,
    "BiasSoftmax": _SAME,
    "BiasSplitGelu": _fixed("y0, right = Split<axis: int = -1, num_outputs: int = 2>(x0)"),
    "CDist": _fixed('y0 = Einsum<equation: string = "mn,kn->mk">(x0, x1)'),
    "DequantizeLinear": _fixed("y0 = CastLike(x0, x1)"),
    "DynamicQuantizeMatMul": _fixed("weights = CastLike(x1, x0)", "y0 = MatMul(x0, weights)"),
    "EmbedLayerNormalization": _fixed(
        "y0 = Gather(x2, x0)",
        _ints("axes", [1]),
        "y1 = ReduceSum<keepdims: int = 0>(x0, axes)",
        "y2 = Gather(x2, x0)",
    ),
    "ExpandDims": _fixed(
        _ints("vector", [-1]),
        "axis = Cast<to: int = 7>(x1)",
        "axes = Reshape(axis, vector)",
        "y0 = Unsqueeze(x0, axes)",
    ),
    "FastGelu": _SAME,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "GatherBlockQuantized": _gather_block_quantized,
    "GatherND": _fixed("indices = Cast<to: int = 7>(x1)", "y0 = GatherND(x0, indices)"),
    "Gelu": _SAME,
    "GemmFastGelu": _fixed("y0 = MatMul(x0, x1)"),
    "GroupQueryAttention": _group_query_attention,
    "Inverse": _SAME,
    "MatMulBnb4": _quantized_matmul,
    "MatMulIntegerToFloat": _fixed("a = CastLike(x0, x2)", "b = CastLike(x1, x2)", "y0 = MatMul(a, b)"),
    "MatMulNBits": _quantized_matmul,
    "MultiHeadAttention": _multi_head_attention,
    "NhwcConv": _nhwc_conv,
    "NhwcFusedConv": _nhwc_conv,
    "Pad": _fixed(_ints("vector", [-1]), "pads = Reshape(x1, vector)", "y0 = Pad(x0, pads)"),
    "QGemm": _quantized_gemm,
    "QLinearAdd": _fixed("y0 = Max(x0, x3)"),
    "QLinearAveragePool": _quantized_pooling,
    "QLinearConcat": _quantized_concat,
    "QLinearGlobalAveragePool": _quantized_global_pooling,
    "QLinearLeakyRelu": _SAME,
    "QLinearMul": _fixed("y0 = Max(x0, x3)"),
    "QLinearSigmoid": _SAME,
    "QLinearSoftmax": _SAME,
    "QLinearWhere": _fixed("y0 = Where(x0, x1, x4)"),
    "QuantizeLinear": _quantize,
    "QuickGelu": _SAME,
    "Range": _range,
    "RotaryEmbedding": _SAME,
    "SkipLayerNormalization": _SKIP,
    "SkipSimplifiedLayerNormalization": _SKIP,
    "TransposeMatMul": _matmul,
    "Trilu": _SAME,
}


def _gradient(node: onnx.NodeProto) -> Lines:
    """A gradient is like the value that it is taken at, and those come first among the inputs."""
    for index in range(min(len(node.input), len(node.output))):
        yield f"y{index} = Identity(x{index})"


BODIES: dict[tuple[str, str], Body] = {
    (AI_ONNX_PREVIEW_TRAINING_DOMAIN, "Gradient"): _gradient,
    ("", "SimplifiedLayerNormalization"): _simplified_layer_normalization,
    **{(_MICROSOFT, op_type): body for op_type, body in _CONTRIBUTED.items()},
}
