"""Attention and MultiHeadAttention of ONNX Runtime's domain against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import with_shapes
from tests.rules.fused import RANKED, check, indices, node_model, normal, torch

HEADS, BATCH, QUERIES, KEYS, PAST, SIZE, WIDE = 2, 2, 3, 4, 2, 4, 6
BIAS = normal(3 * HEADS * SIZE)


def attend(q: Any, k: Any, v: Any, bias: Any = 0, scale: float | None = None) -> tuple[Any, Any]:
    """The result and what the softmax is taken of, for operands [batch, heads, sequence, size]."""
    logits = q @ k.mT * (scale or q.shape[-1] ** -0.5) + bias
    return (torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2), logits


def apart(x: Any) -> Any:
    """[batch, sequence, heads·size] as [batch, heads, sequence, size]."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def padding(mask: Any, keys: int, masked: float) -> Any:
    """What a mask of any form adds to the scores."""
    position = torch.arange(keys)
    if mask.dim() == 1:
        allowed = position < mask[:BATCH, None]
        if len(mask) == 2 * BATCH:
            allowed &= position >= mask[BATCH:, None]
        mask = allowed
    allowed = (mask > 0)[:, None] if mask.dim() == 3 else (mask > 0)[:, None, None]
    return torch.where(allowed, 0.0, masked).double()


def causal(queries: int, keys: int, past: int) -> Any:
    """−∞ for keys behind the query, save that the last query sees them all."""
    seen = torch.arange(queries) + past
    seen[-1] = keys - 1
    return torch.where(torch.arange(keys) <= seen[:, None], 0.0, -torch.inf).double()


MASKS = {
    "lengths": indices(2, 3),
    "ends and starts": indices(2, 3, 1, 2),
    "keys": indices([1, 1, 0], [1, 0, 1]),
    "nothing of a row": indices([1, 1, 0], [0, 0, 0]),
    "queries and keys": indices([[1, 0, 1], [1, 1, 0], [0, 0, 1]], [[0, 1, 1], [1, 1, 1], [1, 0, 0]]),
    "offsets for packing": indices(2, 3, 0, 2, 5, 0, 3, 6),
}


class TestAttention:
    def _check(
        self,
        *,
        mask: np.ndarray | None = None,
        past: np.ndarray | None = None,
        added: np.ndarray | None = None,
        bias: np.ndarray | None = BIAS,
        present: bool = False,
        second_order: bool = False,
        **attributes: Any,
    ) -> None:
        masked = attributes.get("mask_filter_value", -10000.0)
        sizes = attributes.get("qkv_hidden_sizes", [8, 8, 8])

        def attention(x: Any, w: Any, b: Any, mask: Any, past: Any, added: Any) -> Any:
            projected = x @ w + (0 if b is None else b)
            q, k, v = (apart(part) for part in projected.split(sizes, -1))
            if past is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            total = 0 if added is None else added
            if mask is not None and mask.shape[-1] != 1:
                total = total + padding(mask, k.shape[2], masked)
            if attributes.get("unidirectional"):
                total = total + causal(q.shape[2], k.shape[2], k.shape[2] - q.shape[2])
            y, _ = attend(q, k, v, total, attributes.get("scale"))
            return (y, torch.stack([k, v])) if present else y

        inputs = {
            "x": normal(BATCH, QUERIES, 5),
            "w": normal(5, sum(sizes)),
            "b": bias,
            "mask": mask,
            "past": past,
            "added": added,
        }
        shapes = RANKED if mask is not None and not attributes.get("unidirectional") else ("symbolic",)
        check(
            "Attention",
            inputs,
            attention,
            shapes=shapes,
            second_order=second_order,
            num_heads=HEADS,
            **attributes,
        )

    def test_plain(self) -> None:
        self._check(second_order=True)

    def test_without_a_bias(self) -> None:
        self._check(bias=None)

    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("unidirectional", [0, 1])
    def test_masks(self, mask: str, unidirectional: int) -> None:
        self._check(mask=MASKS[mask], mask_filter_value=-3.0, unidirectional=unidirectional)

    def test_the_default_filter(self) -> None:
        self._check(mask=MASKS["keys"])

    @pytest.mark.parametrize("shape", [(1, 1), (BATCH, 1)], ids=str)
    def test_a_mask_without_keys_is_none(self, shape: tuple[int, int]) -> None:
        self._check(mask=np.zeros(shape, dtype=np.int32))

    @pytest.mark.parametrize("unidirectional", [0, 1])
    def test_past_and_present(self, unidirectional: int) -> None:
        self._check(
            past=normal(2, BATCH, HEADS, PAST, SIZE),
            mask=indices([1, 1, 0, 1, 1], [0, 1, 1, 1, 0]),
            unidirectional=unidirectional,
            present=True,
            second_order=bool(unidirectional),
        )

    @pytest.mark.parametrize("shape", [(BATCH, HEADS, 3, 3), (1, HEADS, 3, 3), (BATCH, 1, 3, 3)], ids=str)
    def test_an_added_bias_has_a_gradient(self, shape: tuple[int, ...]) -> None:
        self._check(added=normal(*shape))

    def test_another_scale(self) -> None:
        self._check(scale=0.25)

    def test_values_of_another_size(self) -> None:
        self._check(qkv_hidden_sizes=[8, 8, 4], bias=normal(20))

    @pytest.mark.parametrize(
        ("attributes", "mask", "message"),
        [
            ({"do_rotary": 1}, None, "do_rotary"),
            ({"past_present_share_buffer": 1}, None, "share a buffer"),
            ({}, np.ones((BATCH, 1, 7, 7), dtype=np.int32), "four axes"),
        ],
        ids=["rotary", "shared buffer", "Megatron"],
    )
    def test_refusals(self, attributes: dict[str, int], mask: np.ndarray | None, message: str) -> None:
        inputs = {"x": normal(2, 3, 5), "w": normal(5, 24), "b": normal(24), "mask": mask}
        model = node_model("Attention", inputs, num_heads=HEADS, **attributes)
        with pytest.raises(onnx_grad.UnsupportedOpError, match=message):
            onnx_grad.vjp(model)

    def test_a_mask_of_unknown_rank_is_refused(self) -> None:
        inputs = {"x": normal(2, 3, 5), "w": normal(5, 24), "b": None, "mask": MASKS["keys"]}
        model = with_shapes(node_model("Attention", inputs, num_heads=HEADS), "unknown")
        with pytest.raises(onnx_grad.UnsupportedOpError, match="the rank of its mask is not known"):
            onnx_grad.vjp(model)

    def test_unknown_shapes_without_a_mask(self) -> None:
        inputs = {"x": normal(2, 3, 5), "w": normal(5, 24), "b": normal(24)}

        def attention(x: Any, w: Any, b: Any) -> Any:
            return attend(*(apart(part) for part in (x @ w + b).chunk(3, -1)))[0]

        check("Attention", inputs, attention, shapes=("unknown",), second_order=False, num_heads=HEADS)


class TestMultiHeadAttention:
    def _check(
        self,
        q: np.ndarray,
        k: np.ndarray | None,
        v: np.ndarray | None,
        *,
        bias: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        added: np.ndarray | None = None,
        past: tuple[np.ndarray, np.ndarray] | None = None,
        outputs: int = 1,
        second_order: bool = False,
        dtypes: tuple[type, ...] = (np.float32,),
        **attributes: Any,
    ) -> None:
        def attention(q: Any, k: Any, v: Any, b: Any, mask: Any, added: Any, *past: Any) -> Any:
            q, k, v = _operands(q, k, v, b)
            new = k.shape[2]
            if past[0] is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            total = 0 if added is None else added
            if mask is not None:
                total = total + padding(mask, k.shape[2], -3.0)
            if attributes.get("unidirectional"):
                total = total + causal(q.shape[2], k.shape[2], k.shape[2] - new)
            y, logits = attend(q, k, v, total, attributes.get("scale"))
            return (y, k, v, logits)[:outputs]

        past_key, past_value = past or (None, None)
        inputs = {
            "q": q,
            "k": k,
            "v": v,
            "b": bias,
            "mask": mask,
            "added": added,
            "past_key": past_key,
            "past_value": past_value,
        }
        check(
            "MultiHeadAttention",
            inputs,
            attention,
            dtypes=dtypes,
            shapes=RANKED if k is None or outputs == 4 else ("symbolic",),
            second_order=second_order,
            num_heads=HEADS,
            mask_filter_value=-3.0,
            **attributes,
        )

    Q, K = normal(BATCH, QUERIES, HEADS * SIZE), normal(BATCH, KEYS, HEADS * SIZE, seed=1)
    V = normal(BATCH, KEYS, HEADS * WIDE)
    SAME_V = normal(BATCH, KEYS, HEADS * SIZE, seed=2)
    CACHE = normal(BATCH, HEADS, PAST, SIZE), normal(BATCH, HEADS, PAST, SIZE, seed=1)

    def test_plain(self) -> None:
        self._check(self.Q, self.K, self.V, second_order=True)

    def test_all_outputs(self) -> None:
        self._check(self.Q, self.K, self.V, outputs=4, second_order=True)

    def test_biases_of_the_projections(self) -> None:
        self._check(self.Q, self.K, self.V, bias=normal(2 * HEADS * SIZE + HEADS * WIDE))

    @pytest.mark.parametrize("queries", [QUERIES, KEYS, 1])
    def test_causality(self, queries: int) -> None:
        self._check(normal(BATCH, queries, HEADS * SIZE), self.K, self.V, unidirectional=1)

    @pytest.mark.parametrize(
        "mask",
        [
            indices(2, 4),
            indices([1, 1, 0, 1], [0, 0, 0, 0]),
            indices(*np.random.default_rng(0).integers(0, 2, (BATCH, QUERIES, KEYS)).tolist()),
            indices(2, 4, 0, 2, 5, 0, 2, 6),
        ],
        ids=["lengths", "keys", "queries and keys", "offsets for packing"],
    )
    def test_masks(self, mask: np.ndarray) -> None:
        self._check(self.Q, self.K, self.V, mask=mask)

    @pytest.mark.parametrize("shape", [(BATCH, HEADS, 3, 4), (1, 1, 3, 4)], ids=str)
    def test_an_added_bias_has_a_gradient(self, shape: tuple[int, ...]) -> None:
        self._check(self.Q, self.K, self.V, added=normal(*shape))

    @pytest.mark.parametrize("unidirectional", [0, 1])
    def test_past_and_present(self, unidirectional: int) -> None:
        self._check(
            self.Q,
            self.K,
            self.SAME_V,
            past=self.CACHE,
            mask=indices([1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0]),
            outputs=3,
            unidirectional=unidirectional,
        )

    @pytest.mark.parametrize("bias", [None, normal(3 * HEADS * SIZE)], ids=["no bias", "bias"])
    def test_keys_and_values_by_head(self, bias: np.ndarray | None) -> None:
        k, v = normal(BATCH, HEADS, KEYS, SIZE), normal(BATCH, HEADS, KEYS, SIZE, seed=1)
        self._check(self.Q, k, v, bias=bias)

    @pytest.mark.parametrize("bias", [None, normal(3 * HEADS * SIZE)], ids=["no bias", "bias"])
    def test_everything_packed(self, bias: np.ndarray | None) -> None:
        self._check(normal(BATCH, QUERIES, HEADS, 3, SIZE), None, None, bias=bias, dtypes=())

    @pytest.mark.parametrize("bias", [None, normal(3 * HEADS * SIZE)], ids=["no bias", "bias"])
    def test_keys_and_values_packed(self, bias: np.ndarray | None) -> None:
        self._check(self.Q, normal(BATCH, KEYS, HEADS, 2, SIZE), None, bias=bias, dtypes=())

    def test_another_scale(self) -> None:
        self._check(self.Q, self.K, self.V, scale=0.25)

    def test_a_shared_buffer_is_refused(self) -> None:
        inputs = {"q": self.Q, "k": self.K, "v": self.SAME_V, "b": None, "mask": None, "added": None}
        cached = {"past_key": self.CACHE[0], "past_value": self.CACHE[1], "length": indices(2)}
        model = node_model("MultiHeadAttention", {**inputs, **cached}, num_heads=HEADS)
        with pytest.raises(onnx_grad.UnsupportedOpError, match="share a buffer"):
            onnx_grad.vjp(model)

    def test_keys_of_unknown_rank_are_refused(self) -> None:
        model = node_model("MultiHeadAttention", {"q": self.Q, "k": self.K, "v": self.V}, num_heads=HEADS)
        with pytest.raises(onnx_grad.UnsupportedOpError, match="the rank of its keys is not known"):
            onnx_grad.vjp(with_shapes(model, "unknown"))


def _operands(q: Any, k: Any, v: Any, b: Any) -> tuple[Any, Any, Any]:
    """Queries, keys and values by head, from any of the forms they come in."""
    if k is None:
        parts = [q[:, :, :, i] for i in range(3)]
        biases = [0.0] * 3 if b is None else [part.unflatten(0, (HEADS, -1)) for part in b.chunk(3)]
        q, k, v = ((part + bias).transpose(1, 2) for part, bias in zip(parts, biases, strict=True))
        return q, k, v
    width = q.shape[2]
    biases = (0.0,) * 3 if b is None else b.split([width, width, len(b) - 2 * width])
    if v is None:
        by_head = [0.0 if b is None else bias.unflatten(0, (HEADS, -1)) for bias in biases[1:]]
        k, v = ((k[:, :, :, i] + by_head[i]).transpose(1, 2) for i in range(2))
        return apart(q + biases[0]), k, v
    if k.dim() == 4:
        return apart(q + biases[0]), k, v
    return apart(q + biases[0]), apart(k + biases[1]), apart(v + biases[2])
