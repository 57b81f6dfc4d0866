"""Attention, which is expanded by its function body: every input, attribute and output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import Arrays, check, gradients, single_node

MASK = np.array([[True, True, False], [True, False, True], [True, True, True]])
WITH_A_ROW_MASKED = np.array([[True, True, False], [False, False, False], [True, True, True]])


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def _inputs(queries: int = 2, **others: np.ndarray | None) -> dict[str, np.ndarray | None]:
    q, k, v = _random(2, queries, 3, 2), _random(2, 2, 3, 2), _random(2, 2, 3, 4)
    return {"Q": q, "K": k, "V": v, **others}


def _check(inputs: dict[str, np.ndarray | None], *, opset: int = 23, **options: Any) -> None:
    checking = {name: options.pop(name) for name in ("of", "shapes", "second_order") if name in options}
    model = single_node("Attention", inputs, opset=opset, **options)
    check(model, {name: a for name, a in inputs.items() if a is not None}, **checking)


def test_it_is_expanded() -> None:
    assert registry.lookup("", "Attention", 23).state is State.EXPANDED


@pytest.mark.parametrize("opset", [23, 24, 25])
def test_every_version(opset: int) -> None:
    _check(_inputs(), opset=opset, second_order=opset == 23)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.3}], ids=str)
def test_attributes(attributes: dict[str, float]) -> None:
    _check(_inputs(), **attributes)


@pytest.mark.parametrize("queries", [4, 2])
def test_groups_of_queries_share_keys(queries: int) -> None:
    _check(_inputs(queries))


@pytest.mark.parametrize("shape", [(3, 3), (2, 1, 3, 3)], ids=str)
def test_a_float_mask_has_a_gradient(shape: tuple[int, ...]) -> None:
    _check(_inputs(attn_mask=_random(*shape)))


@pytest.mark.parametrize("mask", [MASK, WITH_A_ROW_MASKED], ids=["some", "a whole row"])
def test_a_boolean_mask(mask: np.ndarray) -> None:
    _check(_inputs(attn_mask=mask), second_order=mask is WITH_A_ROW_MASKED)


def test_a_masked_row_gives_no_nan_in_single_precision() -> None:
    inputs = {n: a.astype(np.float32) for n, a in _inputs().items() if a is not None}
    inputs["attn_mask"] = WITH_A_ROW_MASKED
    model = single_node("Attention", inputs, opset=23)
    actual = gradients(model, inputs, {"y0": _random(2, 2, 3, 4).astype(np.float32)}, ["Q", "K", "V"])
    assert all(np.isfinite(a).all() for a in actual.values())
    np.testing.assert_array_equal(actual["Q"][:, :, 1], 0.0)


@pytest.mark.parametrize("heads", [(2, 2), (2, 1)], ids=str)
def test_packed_heads(heads: tuple[int, int]) -> None:
    """With symbolic dimensions ONNX infers a hidden size of zero."""
    queries, keys = heads
    inputs = {"Q": _random(2, 3, 2 * queries), "K": _random(2, 4, 2 * keys), "V": _random(2, 4, 3 * keys)}
    _check(inputs, q_num_heads=queries, kv_num_heads=keys, shapes=["static", "unknown"])


def test_past_keys_and_values() -> None:
    inputs = _inputs(attn_mask=None, past_key=_random(2, 2, 2, 2), past_value=_random(2, 2, 2, 4))
    _check(inputs, outputs=3, is_causal=1)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_the_output_of_scores(mode: int) -> None:
    """With symbolic dimensions ONNX infers a sequence length of zero."""
    _check(
        _inputs(),
        outputs=["y", "", "", "scores"],
        qk_matmul_output_mode=mode,
        softcap=1.5,
        shapes=["static", "unknown"],
    )


def test_padded_keys() -> None:
    lengths = np.array([2, 3])
    _check(_inputs(attn_mask=None, past_key=None, past_value=None, lengths=lengths), opset=24)


def test_a_sliding_window() -> None:
    _check(_inputs(), opset=25, left_window_size=1, right_window_size=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_lower_precision(dtype: type[np.floating]) -> None:
    exact = {name: a for name, a in _inputs().items() if a is not None}
    inputs = {name: a.astype(dtype) for name, a in exact.items()}
    dy = _random(2, 2, 3, 4)
    names = list(inputs)

    def run(at: Arrays, cotangent: np.ndarray) -> dict[str, np.ndarray]:
        return gradients(single_node("Attention", at, opset=23), at, {"y0": cotangent}, names)

    actual, expected = run(inputs, dy.astype(dtype)), run(exact, dy)
    for name in names:
        assert actual[name].dtype == dtype
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=30 * np.finfo(dtype).eps)
