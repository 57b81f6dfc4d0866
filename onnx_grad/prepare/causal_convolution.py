"""A function body for CausalConvWithState that needs no size to be known."""

from __future__ import annotations

import onnx

from onnx_grad.prepare.body import Body

_HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def causal_convolution(body: Body) -> list[str]:
    """y[n, c, l] = f(Σₜ w[c, t]·z[n, c, l + t] + b[c]), z being the state and the input in a row.

    The body in the specification is one `Conv` with a group for each channel, and exists only where their
    number is known. Elsewhere, this one takes a product of all windows [N, C, L, k] with the weights.
    """
    x, weight, past = body.required(0), body.required(1), body.input(3)
    carried = body.Sub(body.Shape(weight, start=2), [1])
    if past is None:
        padded = body.Pad(x, body.Concat(carried, [0], axis=0), "", [2])
    else:
        padded = body.Concat(past, x, axis=2)
    y = _activated(body, _convolved(body, padded))
    present = padded
    if body.wants(1):
        # From the front: −0, for a kernel of one, would not leave an empty state.
        length = body.Shape(padded, start=2)
        present = body.Slice(padded, body.Sub(length, carried), length, [2])
    return [y, present]


def _convolved(body: Body, padded: str) -> str:
    x, weight, bias = body.required(0), body.required(1), body.input(2)
    channels = body.size(0, 1) or body.size(1, 0)
    if channels:
        operands = [padded, weight] if bias is None else [padded, weight, bias]
        return body.Conv(*operands, group=channels)
    windows = body.Gather(padded, _tap_positions(body, x, weight), axis=2)
    sums = body.MatMul(windows, body.Transpose(weight, perm=[0, 2, 1]))
    y = body.Squeeze(sums, [3])
    return y if bias is None else body.Add(y, body.Unsqueeze(bias, [1]))


def _tap_positions(body: Body, x: str, weight: str) -> str:
    """Where the windows have their taps, [L, k]."""
    zero, one = (body.number(value, onnx.TensorProto.INT64) for value in (0, 1))
    first = body.Range(zero, body.Squeeze(body.Shape(x, start=2)), one)
    tap = body.Range(zero, body.Squeeze(body.Shape(weight, start=2)), one)
    return body.Add(body.Unsqueeze(first, [1]), tap)


def _activated(body: Body, y: str) -> str:
    """SiLU, x·σ(x), where the node asks for it, of half precision computed in single."""
    if body.attribute("activation", b"none") == b"none":
        return y
    element_type = body.element_type(0)
    if element_type not in _HALF_TYPES:
        return body.Mul(y, body.Sigmoid(y))
    wide = body.Cast(y, to=onnx.TensorProto.FLOAT)
    return body.Cast(body.Mul(wide, body.Sigmoid(wide)), to=element_type)
