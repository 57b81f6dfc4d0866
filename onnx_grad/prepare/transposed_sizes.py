"""Transposed convolutions whose output size onnx infers wrongly.

Onnx infers nothing but batch and channels, and that as the whole shape, where the attribute `output_shape` is
smaller than the input; and it adds `output_padding` to the size that an automatic padding has to give. ONNX
Runtime believes that. Here the nodes concerned get the padding that follows from their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnx_grad.prepare.expand import types_of
from onnx_grad.prepare.nodes import auto_pad, integers, set_attributes, spatial_sizes


def settle_transposed_sizes(proto: onnx.ModelProto) -> bool:
    """Change the `ConvTranspose` nodes of the main graph whose output size onnx infers wrongly.

    Args:
        proto: A model with inferred shapes; changed in place.

    Returns:
        Whether a node was changed, so that shapes have to be inferred again.
    """
    nodes = [node for node in proto.graph.node if _is_padded_for_its_size(node)]
    types = dict(types_of(proto.graph)) if nodes else {}
    changes = [_settle(node, types) for node in nodes]
    return any(changes)


def _is_padded_for_its_size(node: onnx.NodeProto) -> bool:
    is_transposed = node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx")
    return is_transposed and bool(auto_pad(node).startswith("SAME") or integers(node, "output_shape", []))


def _settle(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> bool:
    lengths, weights = (spatial_sizes(types, name) for name in node.input[:2])
    kernel, inferred = integers(node, "kernel_shape", weights or ()), spatial_sizes(types, node.output[0])
    if lengths is None or inferred is None or not kernel:
        return False
    reach, wanted = _reach(node, lengths, kernel), integers(node, "output_shape", [])
    totals = [max(0, r - size) for r, size in zip(reach, wanted or _same(node, lengths), strict=True)]
    sizes = tuple(r - total for r, total in zip(reach, totals, strict=True))
    if sizes == inferred or (wanted and sizes != tuple(wanted)):
        return False  # in the latter case, zeros follow that no padding gives
    smaller = [total // 2 for total in totals]
    larger = [total - total // 2 for total in totals]
    pads = [*smaller, *larger] if auto_pad(node) == "SAME_UPPER" else [*larger, *smaller]
    set_attributes(node, auto_pad=None, output_shape=None, pads=pads)
    return True


def _reach(node: onnx.NodeProto, lengths: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """How far the windows and the spare positions behind them reach along each axis."""
    ones, zeros = [1] * len(lengths), [0] * len(lengths)
    strides, dilations = integers(node, "strides", ones), integers(node, "dilations", ones)
    spare = integers(node, "output_padding", zeros)
    axes = zip(lengths, strides, kernel, dilations, spare, strict=True)
    return [(i - 1) * s + (k - 1) * d + 1 + p for i, s, k, d, p in axes]


def _same(node: onnx.NodeProto, lengths: Sequence[int]) -> list[int]:
    """The sizes that an automatic padding has to give."""
    strides = integers(node, "strides", [1] * len(lengths))
    return [i * s for i, s in zip(lengths, strides, strict=True)]
