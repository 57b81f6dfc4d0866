"""Weights of a few bits, which are frozen: MatMulNBits, MatMulBnb4, GatherBlockQuantized."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Array, Builder
from onnx_grad.registry import composition
from onnx_grad.rules.contrib.domain import DOMAIN


def _unsupported(node: ir.Node) -> str | None:
    if node.attributes.get_int("weight_prepacked", 0):
        return (
            "its weights are laid out for one kind of device (weight_prepacked), in an order that is not "
            "specified; give it the weights as they were before"
        )
    if known.optional_operand(node, 4) is not None:
        return (
            "its input g_idx is deprecated, and ONNX Runtime's kernels disagree on its meaning; quantise the "
            "model again without an order of activations (desc_act)"
        )
    return None


@composition("MatMulNBits", domain=DOMAIN, refuses=_unsupported)
def matmul_nbits(op: Builder, node: ir.Node) -> ir.Value:
    """Y = A·Wᵀ + b with W = (q − z)·s by block: dA = dY·W, and s has a gradient, while q and z are frozen.

    The activations count as exact, also where `accuracy_level` lets a kernel round them.
    """
    scales, bias = known.operand(node, 2), known.optional_operand(node, 5)
    bits = node.attributes.get_int("bits", 4)
    outputs, inputs, block = _sizes(node)
    blocks = math.ceil(inputs / block)
    bytes_of_block = op.Reshape(known.operand(node, 1), [outputs, blocks, block * bits // 8])
    q = op.Reshape(_looked_up(op, bytes_of_block, _digits(bits), scales), [outputs, blocks, block])
    centred = q - _zero_points(op, node, bits, blocks)
    weights = op.Reshape(centred * op.Reshape(scales, [outputs, blocks, 1]), [outputs, blocks * block])
    if blocks * block != inputs:
        weights = op.Slice(weights, [0], [inputs], [1])
    product = op.MatMul(known.operand(node, 0), op.Transpose(weights, perm=[1, 0]))
    return product if bias is None else product + bias


def _not_transposed(node: ir.Node) -> str | None:
    if node.attributes.get_int("transB", 1):
        return None
    return (
        "it multiplies with the weights as they are (transB = 0), where the kernel of the CPU gives other "
        "values than ONNX Runtime documents; use the forward form, transB = 1"
    )


@composition("MatMulBnb4", domain=DOMAIN, refuses=_not_transposed)
def matmul_bnb4(op: Builder, node: ir.Node) -> ir.Value:
    """Y = A·Wᵀ with W = table[q]·absmax by block: dA = dY·W, and absmax has a gradient."""
    largest = known.operand(node, 2)
    outputs, inputs, block = _sizes(node)
    count = outputs * inputs
    table = np.array(_TABLES[node.attributes.get_int("quant_type", 0)])
    # The first of two numbers is in the higher bits of a byte.
    pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1)
    numbers = op.Reshape(_looked_up(op, known.operand(node, 1), pairs, largest), [-1])
    blocks = math.ceil(count / block)
    if blocks * block != count:
        spread = op.Reshape(op.Expand(op.Unsqueeze(largest, [1]), [blocks, block]), [blocks * block])
        numbers = op.Slice(numbers, [0], [count], [0]) * op.Slice(spread, [0], [count], [0])
    else:
        numbers = op.Reshape(numbers, [blocks, block]) * op.Unsqueeze(largest, [1])
    weights = op.Transpose(op.Reshape(numbers, [outputs, inputs]), perm=[1, 0])
    return op.MatMul(known.operand(node, 0), weights)


def _other_layouts(node: ir.Node) -> str | None:
    data = known.operand(node, 0)
    axis, rank = node.attributes.get_int("quantize_axis", 1), known.rank(data)
    if node.attributes.get_int("gather_axis", 0) or rank is None or axis not in (-1, rank - 1):
        return (
            "it is differentiated where it gathers along the first axis and quantises by blocks of the last "
            "one, of a table whose rank is known; quantise the table like that"
        )
    if data.dtype != ir.DataType.UINT8:
        return f"its table is of {data.dtype}, and not of uint8; quantise the table to that"
    return None


@composition("GatherBlockQuantized", domain=DOMAIN, refuses=_other_layouts)
def gather_block_quantized(op: Builder, node: ir.Node) -> ir.Value:
    """Y = (q − z)·s for the rows that the indices choose: s has a gradient, while q and z are frozen."""
    data, indices, scales = (known.operand(node, index) for index in range(3))
    zeros, bits = known.optional_operand(node, 3), node.attributes.get_int("bits", 4)
    block = node.attributes.get_int("block_size", 128)
    by_row = op.Unsqueeze(op.Gather(scales, indices), [-1])
    q = _row_of_numbers(op, op.Gather(data, indices), bits, scales)
    spread = op.Expand(by_row, op.Concat(op.Shape(by_row, end=-1), [block], axis=0))
    length = op.Shape(q, start=-1)
    levels: ir.Value | float = float(2 ** (bits - 1))
    if zeros is not None:
        given = _row_of_numbers(op, op.Gather(zeros, indices), bits, scales)
        given = op.Unsqueeze(op.Slice(given, [0], op.Shape(scales, start=-1), [-1]), [-1])
        levels = _merged(op, op.Expand(given, op.Shape(spread)), length)
    return (q - levels) * _merged(op, spread, length)


def _merged(op: Builder, blocks: ir.Value, length: ir.Value) -> ir.Value:
    """The last two axes as one, which is cut to a length."""
    whole = op.Shape(blocks, start=-1) * op.Shape(blocks, start=-2, end=-1)
    merged = op.Reshape(blocks, op.Concat(op.Shape(blocks, end=-2), whole, axis=0), allowzero=1)
    return op.Slice(merged, [0], length, [-1])


def _row_of_numbers(op: Builder, packed: ir.Value, bits: int, like: ir.Value) -> ir.Value:
    """The numbers that the bytes of the last axis hold, on that axis."""
    digits = _looked_up(op, packed, _digits(bits), like)
    count = op.Shape(packed, start=-1) * (8 // bits)
    return op.Reshape(digits, op.Concat(op.Shape(packed, end=-1), count, axis=0), allowzero=1)


def _sizes(node: ir.Node) -> tuple[int, int, int]:
    """How many outputs and inputs the weights connect, and how many weights share a scale."""
    outputs, inputs, block = (node.attributes.get_int(name, 0) for name in ("N", "K", "block_size"))
    return outputs, inputs, block


def _zero_points(op: Builder, node: ir.Node, bits: int, blocks: int) -> ir.Value | float:
    """[outputs, blocks, 1], in the dtype of the scales; the middle of the range where none are given."""
    given, scales = known.optional_operand(node, 3), known.operand(node, 2)
    if given is None:
        return float(2 ** (bits - 1))
    outputs, per_byte = _sizes(node)[0], 8 // bits
    if given.dtype == ir.DataType.UINT8:
        bytes_of_row = math.ceil(blocks / per_byte)
        digits = _looked_up(op, op.Reshape(given, [outputs, bytes_of_row]), _digits(bits), scales)
        given = op.Reshape(digits, [outputs, bytes_of_row * per_byte])
        if bytes_of_row * per_byte != blocks:
            given = op.Slice(given, [0], [blocks], [1])
    return op.Reshape(op.CastLike(given, scales), [outputs, blocks, 1])


def _looked_up(op: Builder, packed: ir.Value, table: Array, like: ir.Value) -> ir.Value:
    """The row of `table` for every byte, along a further axis, in the dtype of `like`."""
    dtype = like.dtype or ir.DataType.FLOAT
    rows = op.Gather(op.constant(table, dtype), op.Cast(packed, to=ir.DataType.INT32), axis=0)
    return op.CastLike(rows, like)


def _digits(bits: int) -> Array:
    """The numbers of so many bits that a byte holds, the one in its lowest bits first."""
    byte = np.arange(256)
    return np.stack([byte >> shift & 2**bits - 1 for shift in range(0, 8, bits)], axis=1)


# Of `quant_type` 0 and 1: numbers of four bits, one of which is the sign; and quantiles of the normal
# distribution, as Dettmers et al. (2023), "QLoRA", give them in appendix E.
_MAGNITUDES = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
_TABLES = (
    (*_MAGNITUDES, *(-number for number in _MAGNITUDES)),
    (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
