"""Attention, which is expanded by a body of our own: every input, attribute and output.

Small cases are compared with finite differences, and combinations with PyTorch's autograd through the formula
of the specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import SHAPE_KNOWLEDGE, Arrays, check, evaluator, gradients, single_node, with_shapes

MASK = np.array([[True, True, False], [True, False, True], [True, True, True]])
WITH_A_ROW_MASKED = np.array([[True, True, False], [False, False, False], [True, True, True]])

Y, SCORES, ALL = ["y0"], ["y0", "", "", "y3"], ["y0", "y1", "y2", "y3"]


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


class TestAgainstDifferences:
    @pytest.mark.parametrize("opset", [23, 24, 25])
    def test_every_version(self, opset: int) -> None:
        _check(_inputs(), opset=opset, second_order=opset == 23)

    @pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.3}], ids=str)
    def test_attributes(self, attributes: dict[str, float]) -> None:
        _check(_inputs(), **attributes)

    @pytest.mark.parametrize("queries", [4, 2])
    def test_groups_of_queries_share_keys(self, queries: int) -> None:
        _check(_inputs(queries), second_order=queries == 4)

    @pytest.mark.parametrize("shape", [(3, 3), (2, 1, 3, 3)], ids=str)
    def test_a_float_mask_has_a_gradient(self, shape: tuple[int, ...]) -> None:
        _check(_inputs(attn_mask=_random(*shape)))

    @pytest.mark.parametrize("mask", [MASK, WITH_A_ROW_MASKED], ids=["some", "a whole row"])
    def test_a_boolean_mask(self, mask: np.ndarray) -> None:
        _check(_inputs(attn_mask=mask), second_order=mask is WITH_A_ROW_MASKED)

    @pytest.mark.parametrize("heads", [(2, 2), (2, 1)], ids=str)
    def test_packed_heads(self, heads: tuple[int, int]) -> None:
        queries, keys = heads
        inputs = {
            "Q": _random(2, 3, 2 * queries),
            "K": _random(2, 4, 2 * keys),
            "V": _random(2, 4, 3 * keys),
        }
        _check(inputs, q_num_heads=queries, kv_num_heads=keys)

    def test_past_keys_and_values(self) -> None:
        inputs = _inputs(attn_mask=None, past_key=_random(2, 2, 2, 2), past_value=_random(2, 2, 2, 4))
        _check(inputs, outputs=3, is_causal=1)

    @pytest.mark.parametrize("mode", [0, 1, 2, 3])
    def test_the_output_of_scores(self, mode: int) -> None:
        _check(_inputs(), outputs=SCORES, qk_matmul_output_mode=mode, softcap=1.5)

    def test_padded_keys(self) -> None:
        lengths = np.array([2, 3])
        _check(_inputs(attn_mask=None, past_key=None, past_value=None, lengths=lengths), opset=24)

    def test_a_sliding_window(self) -> None:
        _check(_inputs(), opset=25, left_window_size=1, right_window_size=0)


# Sizes are B(atch) = 2, H(eads of queries), S = 3 queries, T keys in all, t all but one.
# Columns: heads, packed, mask (type, shape), past keys, padding, outputs, opset, attributes.
COMBINATIONS: list[tuple[tuple[int, int], bool, Any, int, bool, list[str], int, dict[str, Any]]] = [
    ((2, 2), False, None, 2, False, ALL, 23, {"is_causal": 1, "qk_matmul_output_mode": 2}),
    ((4, 2), True, ("float", "ST"), 0, False, SCORES, 23, {"is_causal": 1, "qk_matmul_output_mode": 2}),
    ((4, 1), False, ("float", "T"), 2, False, SCORES, 23, {"softcap": 1.5, "qk_matmul_output_mode": 1}),
    ((2, 1), True, ("bool", "BHST"), 2, False, ALL, 24, {"scale": 0.75, "qk_matmul_output_mode": 3}),
    ((2, 2), True, ("float", "HST"), 0, True, SCORES, 24, {"is_causal": 1, "qk_matmul_output_mode": 3}),
    ((4, 2), False, ("float", "B1ST"), 0, True, SCORES, 24, {"softcap": 0.75, "qk_matmul_output_mode": 0}),
    ((2, 2), False, ("float", "St"), 2, False, Y, 24, {"is_causal": 1}),
    ((2, 2), True, ("bool", "St"), 0, False, SCORES, 24, {"qk_matmul_output_mode": 2, "softcap": 2.0}),
    ((2, 2), False, ("bool", "ST"), 0, True, Y, 25, {"is_causal": 1, "left_window_size": 0}),
    ((4, 2), True, ("float", "BH1T"), 2, False, ALL, 25, {"right_window_size": 1}),
    ((2, 2), False, None, 0, True, SCORES, 25, {"left_window_size": 1, "qk_matmul_output_mode": 3}),
    ((2, 1), False, ("int", "ST"), 0, False, Y, 25, {"softmax_precision": onnx.TensorProto.DOUBLE}),
]
TOLERANCES = {np.float64: 1e-9, np.float32: 3e-5, np.float16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("row", range(len(COMBINATIONS)))
def test_combinations_against_autograd(row: int, dtype: type[np.floating]) -> None:
    torch = _torch()
    model, inputs, attributes = _combination(row, dtype)
    wrt = [name for name, a in inputs.items() if a.dtype == dtype]
    leaves = {name: _leaf(torch, a, dtype) for name, a in inputs.items()}
    values = _attention(torch, leaves, attributes)
    of = [output.name for output in model.graph.output]
    cotangents = {y: _random(*values[y].shape) for y in of}
    torch.autograd.backward([values[y] for y in of], [torch.tensor(cotangents[y]) for y in of])
    narrow = {y: dy.astype(dtype) for y, dy in cotangents.items()}
    for knowledge in SHAPE_KNOWLEDGE if dtype == np.float64 else ["unknown"]:
        actual = gradients(with_shapes(model, knowledge), inputs, narrow, wrt)
        for name in wrt:
            assert actual[name].dtype == dtype
            expected = leaves[name].grad
            np.testing.assert_allclose(
                actual[name],
                np.zeros(inputs[name].shape) if expected is None else expected,
                rtol=TOLERANCES[dtype],
                atol=TOLERANCES[dtype],
                err_msg=f"{name}, {knowledge} shapes",
            )


@pytest.mark.parametrize("row", range(len(COMBINATIONS)))
def test_the_body_computes_what_the_specification_says(row: int) -> None:
    torch = _torch()
    model, inputs, attributes = _combination(row, np.float64)
    values = _attention(torch, {n: _leaf(torch, a, np.float64) for n, a in inputs.items()}, attributes)
    of = [output.name for output in model.graph.output]
    transformed = onnx_grad.vjp(model, ["Q"], ["y0"])
    assert "Attention" not in {node.op_type for node in transformed.graph.node}
    actual = evaluator(transformed)({**inputs, "y0_grad": np.zeros(values["y0"].shape)})
    for y in of:
        np.testing.assert_allclose(actual[y], values[y].detach(), rtol=1e-9, atol=1e-12, err_msg=y)


def _leaf(torch: Any, array: np.ndarray, dtype: type[np.floating]) -> Any:
    if array.dtype == dtype:
        return torch.tensor(array.astype(np.float64), requires_grad=True)
    return torch.tensor(array)


def _combination(
    row: int, dtype: type[np.floating]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, Any]]:
    """A model of one node, its inputs and its attributes."""
    (queries, keys), packed, mask, past, padding, outputs, opset, attributes = COMBINATIONS[row]
    generator = np.random.default_rng(row)
    sizes = {"B": 2, "H": queries, "S": 3, "T": 3 + past, "t": 2 + past, "1": 1}

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(dtype)

    def operand(heads: int, size: int) -> np.ndarray:
        return normal(2, 3, heads * size) if packed else normal(2, heads, 3, size)

    inputs: dict[str, np.ndarray | None] = {"Q": operand(queries, 2), "K": operand(keys, 2)}
    inputs |= {"V": operand(keys, 4), "mask": None, "past_key": None, "past_value": None}
    if mask is not None:
        draws = {
            "float": normal,
            "bool": lambda *shape: generator.random(shape) < 0.6,
            "int": lambda *shape: generator.integers(-2, 2, shape),
        }
        inputs["mask"] = draws[mask[0]](*(sizes[size] for size in mask[1]))
    if past:
        inputs |= {"past_key": normal(2, keys, past, 2), "past_value": normal(2, keys, past, 4)}
    if padding:
        inputs["lengths"] = np.array([2, 3])
    if packed:
        attributes = {**attributes, "q_num_heads": queries, "kv_num_heads": keys}
    model = single_node("Attention", inputs, outputs=outputs, opset=opset, **attributes)
    return model, {name: a for name, a in inputs.items() if a is not None}, attributes


def _torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch's autograd")


def _attention(torch: Any, at: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The specification, in PyTorch."""
    q, k, v = at["Q"], at["K"], at["V"]
    packed = q.dim() == 3
    if packed:
        number = {"q": attributes["q_num_heads"], "k": attributes["kv_num_heads"]}
        q, k, v = (
            x.unflatten(-1, (number[which], -1)).transpose(1, 2)
            for x, which in ((q, "q"), (k, "k"), (v, "k"))
        )
    offset: Any = 0
    if "past_key" in at:
        offset = at["past_key"].shape[2]
        k, v = torch.cat([at["past_key"], k], 2), torch.cat([at["past_value"], v], 2)
    repeats = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = q @ keys.transpose(-1, -2) * attributes.get("scale", q.shape[-1] ** -0.5)
    cap = attributes.get("softcap", 0.0)
    capped = cap * torch.tanh(scores / cap) if cap else scores

    row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    allowed = torch.ones(1, dtype=torch.bool)
    if "lengths" in at:
        lengths = at["lengths"][:, None, None, None]
        offset = lengths - q.shape[2]
        allowed = allowed & (column < lengths)
    if attributes.get("is_causal"):
        allowed = allowed & (column <= row + offset)
    if "left_window_size" in attributes:
        allowed = allowed & (column >= row + offset - attributes["left_window_size"])
    if "right_window_size" in attributes:
        allowed = allowed & (column <= row + offset + attributes["right_window_size"])
    bias = torch.where(allowed, 0.0, -torch.inf).to(q.dtype)
    if "mask" in at:
        mask = at["mask"]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -torch.inf).to(q.dtype)
        short = k.shape[2] - mask.shape[-1]
        bias = bias + torch.nn.functional.pad(mask.to(q.dtype), (0, short), value=-torch.inf)
    biased = capped + bias
    empty = (bias == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(torch.where(empty, 0.0, biased), -1)
    weights = torch.where(empty, torch.zeros_like(weights), weights)
    y = weights @ values
    shown = (scores, capped, biased, weights)[attributes.get("qk_matmul_output_mode", 0)]
    return {"y0": y.transpose(1, 2).flatten(2) if packed else y, "y1": k, "y2": v, "y3": shown}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "a row masked", "float", "scale", "shared"])
def test_against_torch_scaled_dot_product_attention(kind: str, dtype: type[np.floating]) -> None:
    """Rows that are masked completely included: zeros, not NaN."""
    torch = _torch()
    masks = {"bool": MASK, "a row masked": WITH_A_ROW_MASKED, "float": _random(3, 3).astype(dtype)}
    exact = _inputs(4 if kind == "shared" else 2, attn_mask=None)
    inputs = {name: a.astype(dtype) for name, a in exact.items() if a is not None}
    if kind in masks:
        inputs["attn_mask"] = masks[kind]
    options = {"is_causal": kind == "causal", "scale": 0.375 if kind == "scale" else None}
    attributes = {name: value for name, value in options.items() if value}
    wrt = [name for name, a in inputs.items() if a.dtype == dtype]
    leaves = {name: torch.tensor(a, requires_grad=name in wrt) for name, a in inputs.items()}
    y = torch.nn.functional.scaled_dot_product_attention(
        *leaves.values(), **options, enable_gqa=kind == "shared"
    )
    dy = _random(*y.shape).astype(dtype)
    y.backward(torch.tensor(dy))
    model = single_node("Attention", inputs, opset=23, **attributes)
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, wrt)
        for name in wrt:
            np.testing.assert_allclose(
                actual[name], leaves[name].grad, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
            )


def test_a_masked_row_has_the_gradient_zero_for_its_query() -> None:
    inputs = {n: a.astype(np.float32) for n, a in _inputs().items() if a is not None}
    inputs["attn_mask"] = WITH_A_ROW_MASKED
    model = single_node("Attention", inputs, opset=23)
    actual = gradients(model, inputs, {"y0": _random(2, 2, 3, 4).astype(np.float32)}, ["Q", "K", "V"])
    assert all(np.isfinite(a).all() for a in actual.values())
    np.testing.assert_array_equal(actual["Q"][:, :, 1], 0.0)


def test_numbers_of_heads_beside_operands_of_rank_4() -> None:
    """They say nothing new, also where ranks are unknown."""
    inputs = {name: a for name, a in _inputs(4).items() if a is not None}
    plain, numbered = (
        single_node("Attention", inputs, opset=23, **numbers)
        for numbers in ({}, {"q_num_heads": 4, "kv_num_heads": 2})
    )
    dy = {"y0": _random(2, 4, 3, 4)}
    expected = gradients(plain, inputs, dy, list(inputs))
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(numbered, knowledge), inputs, dy, list(inputs))
        for name in inputs:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-9)


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_attend_for(batch: int, queries: int) -> None:
    inputs = {"Q": _random(batch, queries, 4), "K": _random(batch, 3, 4), "V": _random(batch, 3, 2)}
    model = single_node("Attention", inputs, opset=23, q_num_heads=2, kv_num_heads=2, is_causal=1)
    actual = gradients(model, inputs, {"y0": _random(batch, queries, 2)}, list(inputs))
    for name, a in inputs.items():
        np.testing.assert_array_equal(actual[name], np.zeros_like(a))


def test_packed_operands_without_numbers_of_heads() -> None:
    inputs = {name: _random(2, 3, 4) for name in "QKV"}
    model = single_node("Attention", inputs, opset=23, q_num_heads=2, kv_num_heads=2)
    del model.graph.node[0].attribute[:]
    with pytest.raises(onnx_grad.ModelError, match="needs the attributes q_num_heads"):
        onnx_grad.vjp(model)


def test_nothing_is_masked_that_needs_no_mask() -> None:
    """Four matrix products backward, two forward, and nothing else to do with masks."""
    inputs = {name: a for name, a in _inputs().items() if a is not None}
    operators = [n.op_type for n in onnx_grad.vjp(single_node("Attention", inputs, opset=23)).graph.node]
    assert operators.count("MatMul") == 6
    assert not {"Where", "ReduceMax", "Expand", "IsNaN", "Add"} & set(operators)


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
