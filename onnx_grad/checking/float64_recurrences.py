"""Operators with a state, in float64 for the ONNX reference evaluator, which computes them in float32."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

Array: TypeAlias = np.ndarray[Any, Any]


class CausalConvWithState(OpRun):
    """y = f(Σₜ w[t] z[l + t] + b) for each channel, z being the state and the input in a row."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        past_state: Array | None = None,
        activation: str | None = None,
    ) -> tuple[Array, ...]:
        (batch, channels, length), size = x.shape, weight.shape[2]
        past = np.zeros((batch, channels, size - 1), x.dtype) if past_state is None else past_state
        z = np.concatenate([past, x], axis=2)
        y = sum((weight[:, 0, t, None] * z[:, :, t : t + length] for t in range(size)), np.zeros_like(x))
        if bias is not None:
            y = y + bias[:, None]
        if activation in ("silu", "swish"):
            y = y / (1.0 + np.exp(-y))
        return (y, z[:, :, length:])[: len(self.onnx_node.output)]


class LinearAttention(OpRun):
    """S = exp(g) S + β k ⊗ (v - Sᵀ k) and o = scale Sᵀ q, token by token; without g, β or Sᵀ k by rule."""

    def _run(
        self,
        query: Array,
        key: Array,
        value: Array,
        past_state: Array | None = None,
        decay: Array | None = None,
        beta: Array | None = None,
        chunk_size: int | None = None,
        kv_num_heads: int | None = None,
        q_num_heads: int | None = None,
        scale: float | None = None,
        update_rule: str | None = None,
    ) -> tuple[Array, ...]:
        del chunk_size, update_rule  # the one is a hint; the inputs that are there tell the other
        assert q_num_heads is not None
        assert kv_num_heads is not None
        q, k, v = _by_head(query, q_num_heads), _by_head(key, kv_num_heads), _by_head(value, kv_num_heads)
        scale = scale or 1.0 / math.sqrt(k.shape[-1])
        # Of one element for each head, or for each row of the state.
        growth = None if decay is None else np.exp(_by_head(decay, kv_num_heads))
        rate = None if beta is None else _by_head(beta, beta.shape[-1])
        shape = (query.shape[0], kv_num_heads, k.shape[-1], v.shape[-1])
        state = np.zeros(shape, query.dtype) if past_state is None else past_state
        outputs = np.zeros((*q.shape[:3], v.shape[-1]), query.dtype)
        for token in range(query.shape[1]):
            now, written = k[:, :, token], v[:, :, token]
            if growth is not None:
                state = growth[:, :, token, :, None] * state
            if rate is not None:
                written = rate[:, :, token] * (written - np.einsum("bhkv,bhk->bhv", state, now))
            state = state + now[..., None] * written[..., None, :]
            read = np.repeat(state, q_num_heads // kv_num_heads, axis=1)
            outputs[:, :, token] = scale * np.einsum("bhkv,bhk->bhv", read, q[:, :, token])
        output = outputs.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1)
        return (output, state)[: len(self.onnx_node.output)]


def _by_head(packed: Array, heads: int) -> Array:
    """[batch, token, head · size] as [batch, head, token, size]."""
    return packed.reshape(*packed.shape[:2], heads, -1).transpose(0, 2, 1, 3)
