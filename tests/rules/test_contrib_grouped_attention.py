"""GroupQueryAttention against PyTorch: prompts, caches that are filled differently, and all that is added."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.rules.fused import RANKED, check, indices, node_model, normal, torch
from tests.rules.test_contrib_rotary_embedding import rotate

HEADS, KEY_HEADS, SIZE, BATCH, TOKENS, CAPACITY = 4, 2, 16, 2, 3, 5
Q = normal(BATCH, TOKENS, HEADS * SIZE)
K, V = normal(BATCH, TOKENS, KEY_HEADS * SIZE), normal(BATCH, TOKENS, KEY_HEADS * SIZE, seed=1)
CACHE = normal(BATCH, KEY_HEADS, CAPACITY, SIZE), normal(BATCH, KEY_HEADS, CAPACITY, SIZE, seed=1)
COS, SIN = normal(12, SIZE // 2), normal(12, SIZE // 2, seed=1)

INPUTS = (
    "q k v past_key past_value seqlens_k total_sequence_length cos sin position_ids attention_bias head_sink "
    "k_scale v_scale q_norm_weight k_norm_weight query_seqlens"
).split()

# How many tokens each sequence holds in the end, given one new token, and a cache that had all but that.
ONE_TOKEN = {
    "q": Q[:, :1],
    "k": K[:, :1],
    "v": V[:, :1],
    "past_key": CACHE[0],
    "past_value": CACHE[1],
    "seqlens_k": indices(5, 2),
    "total_sequence_length": np.array(6, dtype=np.int32),
}
PROMPT = {
    "q": Q,
    "k": K,
    "v": V,
    "seqlens_k": indices(2, 2),
    "total_sequence_length": np.array(3, dtype=np.int32),
}
CHUNK = {
    "q": Q[:1],
    "k": K[:1],
    "v": V[:1],
    "past_key": CACHE[0][:1],
    "past_value": CACHE[1][:1],
    "seqlens_k": indices(7),
    "total_sequence_length": np.array(8, dtype=np.int32),
}


def _apart(x: Any, heads: int) -> Any:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _normalized(x: Any, weight: Any) -> Any:
    return x if weight is None else x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def _reference(outputs: int, attributes: dict[str, Any]) -> Any:
    def attention(*given: Any) -> Any:
        inputs = dict(zip(INPUTS, given, strict=False))
        if inputs["k"] is None:
            sizes = [HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE]
            inputs["q"], inputs["k"], inputs["v"] = inputs["q"].split(sizes, -1)
        results = [_sequence(inputs, index, attributes) for index in range(len(inputs["q"]))]
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked[:outputs]

    return attention


def _sequence(inputs: dict[str, Any], index: int, attributes: dict[str, Any]) -> tuple[Any, Any, Any]:
    """One sequence of the batch, with the new keys written into its cache."""
    q, k, v = (
        _apart(inputs[name][index : index + 1], heads)[0]
        for name, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS))
    )
    q, k = _normalized(q, inputs.get("q_norm_weight")), _normalized(k, inputs.get("k_norm_weight"))
    length, tokens, new = int(inputs["seqlens_k"][index]) + 1, q.shape[1], k.shape[1]
    lengths = inputs.get("query_seqlens")
    valid = min(tokens, length) if lengths is None else int(lengths[index])
    before = length - valid if new else length
    start = length - valid
    at = torch.arange(tokens) + start
    if attributes.get("do_rotary"):
        positions = inputs.get("position_ids")
        total = int(inputs["total_sequence_length"])
        if positions is not None:
            at_angles = positions[0, 0] + torch.arange(tokens) if total == tokens else positions[index]
        else:
            at_angles = at
        interleaved = bool(attributes.get("rotary_interleaved"))
        q, k = (
            rotate(x[None], inputs["cos"][at_angles], inputs["sin"][at_angles], interleaved)[0]
            for x in (q, k)
        )
    keys, values = (
        _written(inputs.get(name), index, x, before, int(inputs["total_sequence_length"]))
        for name, x in (("past_key", k), ("past_value", v))
    )
    group = HEADS // KEY_HEADS
    scale = attributes.get("scale") or SIZE**-0.5
    logits = q @ keys.repeat_interleave(group, 0).mT * scale
    cap = attributes.get("softcap", 0.0)
    if cap:
        logits = cap * torch.tanh(logits / cap)
    bias = inputs.get("attention_bias")
    if bias is not None:
        bias = bias[min(index, len(bias) - 1)]
        missing = logits.shape[-1] - bias.shape[-1]
        logits = logits + torch.nn.functional.pad(bias, (0, missing))
    position, window = torch.arange(keys.shape[1]), attributes.get("local_window_size", -1)
    allowed = position < length
    if attributes.get("causal", 1):
        allowed = position <= at[:, None]
        if window > 0:
            allowed = allowed & (position > at[:, None] - window)
    logits = torch.where(allowed, logits, -torch.inf)
    sink = inputs.get("head_sink")
    if sink is None and attributes.get("smooth_softmax"):
        sink = torch.zeros(HEADS, dtype=torch.float64)
    if sink is not None:
        column = sink[:, None, None].expand(HEADS, tokens, 1)
        probabilities = torch.softmax(torch.cat([logits, column], -1), -1)[..., :-1]
    else:
        probabilities = torch.softmax(logits, -1)
    y = (probabilities @ values.repeat_interleave(group, 0)).transpose(0, 1).flatten(1)
    return y, keys, values


def _written(cache: Any, index: int, new: Any, before: int, total: int) -> Any:
    if cache is None:
        return new
    rows = [cache[index, :, :before], new]
    filled = torch.cat(rows, 1)
    length = max(cache.shape[2], total)
    return torch.nn.functional.pad(filled, (0, 0, 0, max(0, length - filled.shape[1])))[:, :length]


def _check(given: dict[str, Any], *, outputs: int = 3, **options: Any) -> None:
    attributes = {name: options.pop(name) for name in list(options) if name not in _OPTIONS}
    last = max(INPUTS.index(name) for name in given)
    inputs = {name: given.get(name) for name in INPUTS[: last + 1]}
    check(
        "GroupQueryAttention",
        inputs,
        _reference(outputs, attributes),
        num_heads=HEADS,
        kv_num_heads=KEY_HEADS,
        **{"second_order": False, "shapes": ("symbolic",), **options},
        **attributes,
    )


_OPTIONS = ("dtypes", "second_order", "shapes", "of")


class TestPrompts:
    def test_plain(self) -> None:
        _check(PROMPT, dtypes=(np.float32, np.float16), shapes=RANKED, second_order=True)

    def test_everything_packed(self) -> None:
        packed = np.concatenate([Q, K, V], axis=-1)
        _check({**PROMPT, "q": packed, "k": None, "v": None}, second_order=True)

    def test_a_cache_that_is_filled_from_its_start(self) -> None:
        _check({**PROMPT, "past_key": CACHE[0], "past_value": CACHE[1]})

    @pytest.mark.parametrize("interleaved", [0, 1])
    def test_rotation(self, interleaved: int) -> None:
        _check({**PROMPT, "cos": COS, "sin": SIN}, do_rotary=1, rotary_interleaved=interleaved)

    def test_rotation_from_the_first_of_the_given_positions_on(self) -> None:
        positions = np.array([[3, 1, 5], [2, 2, 0]])
        _check({**PROMPT, "cos": COS, "sin": SIN, "position_ids": positions}, do_rotary=1)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"scale": 0.5},
            {"softcap": 0.5},
            {"local_window_size": 2},
            {"smooth_softmax": 1},
            {"causal": 0},
        ],
        ids=str,
    )
    def test_attributes(self, attributes: dict[str, Any]) -> None:
        _check(PROMPT, second_order="softcap" in attributes, **attributes)

    def test_a_sink_has_a_gradient(self) -> None:
        _check({**PROMPT, "head_sink": normal(HEADS)}, second_order=True)

    @pytest.mark.parametrize("shape", [(1, HEADS, 3, 3), (BATCH, 1, 3, 3)], ids=str)
    def test_an_added_bias_has_a_gradient(self, shape: tuple[int, ...]) -> None:
        _check({**PROMPT, "attention_bias": normal(*shape)}, softcap=0.5)

    def test_normalized_queries_and_keys(self) -> None:
        weights = {"q_norm_weight": normal(SIZE), "k_norm_weight": normal(SIZE, seed=1)}
        _check({**PROMPT, "cos": COS, "sin": SIN, **weights}, do_rotary=1, dtypes=())


class TestCaches:
    def test_one_token_for_caches_that_are_filled_differently(self) -> None:
        _check(ONE_TOKEN, shapes=RANKED, second_order=True)

    @pytest.mark.parametrize("capacity", [2, 9], ids=["as long as needed", "longer"])
    def test_caches_of_other_lengths(self, capacity: int) -> None:
        caches = {
            "past_key": normal(BATCH, KEY_HEADS, capacity, SIZE),
            "past_value": normal(BATCH, KEY_HEADS, capacity, SIZE, seed=1),
        }
        total = {"seqlens_k": indices(2, 1), "total_sequence_length": np.array(3, dtype=np.int32)}
        _check({**ONE_TOKEN, **caches, **total})

    def test_a_chunk_of_tokens(self) -> None:
        _check(CHUNK)

    def test_rotation(self) -> None:
        _check({**ONE_TOKEN, "cos": COS, "sin": SIN}, do_rotary=1)

    @pytest.mark.parametrize("given", [ONE_TOKEN, CHUNK], ids=["one token", "chunk"])
    def test_rotation_at_given_positions(self, given: dict[str, Any]) -> None:
        positions = np.array([[7], [1]]) if given is ONE_TOKEN else np.array([[7, 1, 3]])
        _check({**given, "cos": COS, "sin": SIN, "position_ids": positions}, do_rotary=1)

    @pytest.mark.parametrize("window", [1, 2, 20])
    def test_local_windows(self, window: int) -> None:
        _check(ONE_TOKEN, local_window_size=window)

    def test_no_causality(self) -> None:
        _check(ONE_TOKEN, causal=0)

    @pytest.mark.parametrize("shape", [(BATCH, 1, 1, 6), (1, HEADS, 1, 6)], ids=str)
    def test_an_added_bias_belongs_to_positions(self, shape: tuple[int, ...]) -> None:
        _check({**ONE_TOKEN, "attention_bias": normal(*shape)}, second_order=shape[0] == 1)

    def test_padded_chunks(self) -> None:
        cache = {
            "past_key": normal(BATCH, KEY_HEADS, 6, SIZE),
            "past_value": normal(BATCH, KEY_HEADS, 6, SIZE),
        }
        lengths = {
            "seqlens_k": indices(2, 3),
            "total_sequence_length": np.array(6, dtype=np.int32),
            "query_seqlens": indices(2, 3),
        }
        model_inputs = {**PROMPT, **cache, **lengths}
        # What the kernel gives behind the last valid query is not defined, so it is not compared.
        _check(model_inputs, dtypes=())


class TestRefusals:
    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"sliding_window_cache": 1, "local_window_size": 2}, "cache is a sliding window"),
            ({"k_quant_type": "PER_TENSOR"}, "cache is quantised"),
        ],
        ids=["sliding window", "quantised cache"],
    )
    def test_caches(self, attributes: dict[str, Any], message: str) -> None:
        inputs = {name: ONE_TOKEN.get(name) for name in INPUTS[:7]}
        model = node_model(
            "GroupQueryAttention", inputs, num_heads=HEADS, kv_num_heads=KEY_HEADS, **attributes
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match=message):
            onnx_grad.vjp(model)

    def test_the_scores_as_an_output(self) -> None:
        inputs = {name: PROMPT.get(name) for name in INPUTS[:7]}
        outputs = ["y", "key", "value", "scores"]
        model = node_model(
            "GroupQueryAttention", inputs, outputs, num_heads=HEADS, kv_num_heads=KEY_HEADS, qk_output=1
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match="output_qk"):
            onnx_grad.vjp(model, of="y")
