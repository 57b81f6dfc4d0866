"""Normalizations, with every optional input and output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.oracle import evaluator, gradients, quiet_vjp, single_node
from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import normal, positive

F = torch.nn.functional

CHANNELS = {"scale": normal(4, seed=1), "b": normal(4, seed=2)}


def layers() -> Iterator[Row]:
    for axis in (-1, 1, 0, -2):
        shape = (2, 3, 4)
        inner = shape[axis:]
        for bias in (True, False):
            scale = normal(*inner, seed=1)
            yield Row(
                "LayerNormalization",
                {"x": normal(*shape), "scale": scale, "b": normal(*inner, seed=2) if bias else None},
                lambda x, w, b=None, inner=inner: F.layer_norm(x, inner, w, b, 1e-5),
                {"axis": axis},
            )
        yield Row(
            "RMSNormalization",
            {"x": normal(*shape), "scale": scale},
            lambda x, w, inner=inner: F.rms_norm(x, inner, w, 1e-5),
            {"axis": axis},
            opset=23,
        )


@rows(*layers())
def test_over_trailing_axes(row: Row) -> None:
    agree(row)


def layer_with_statistics(x: Any, scale: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Layer normalization with its mean and the reciprocal of its standard deviation."""
    mean = x.mean(-1, keepdim=True)
    inverse = (x.var(-1, keepdim=True, unbiased=False) + 0.01).rsqrt()
    return (x - mean) * inverse * scale + bias, mean, inverse


@rows(
    *(
        Row(
            "LayerNormalization",
            {"x": normal(2, 3, 4), **CHANNELS},
            function,
            attributes,
            outputs=3,
            of=of,
            single=True,
        )
        for attributes in [{"epsilon": 0.01}]
        for function, of in [
            (layer_with_statistics, ("y0", "y1", "y2")),
            (lambda *inputs: layer_with_statistics(*inputs)[1:], ("y1", "y2")),
        ]
    )
)
def test_statistics_have_cotangents_too(row: Row) -> None:
    agree(row)


@rows(
    *(
        Row(
            "InstanceNormalization",
            {"x": normal(2, 4, *inner), **CHANNELS},
            lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=0.01),
            {"epsilon": 0.01},
            single=True,
        )
        for inner in ((3,), (2, 3), (1, 2, 2))
    ),
    *(
        Row(
            "GroupNormalization",
            {"x": normal(2, 4, 3), **CHANNELS},
            lambda x, w, b, groups=groups: F.group_norm(x, groups, w, b, 1e-5),
            {"num_groups": groups},
            opset=21,
            single=True,
        )
        for groups in (1, 2, 4)
    ),
    Row(
        "GroupNormalization",
        {"x": normal(2, 4, 3), "scale": normal(2, seed=1), "b": normal(2, seed=2)},
        lambda x, w, b: F.group_norm(x, 2, w.repeat_interleave(2), b.repeat_interleave(2), 1e-5),
        {"num_groups": 2},
        single=True,
    ),
    Row(
        "MeanVarianceNormalization",
        {"x": normal(2, 3, 2, 2)},
        lambda x: (x - x.mean((0, 2, 3), True)) / (x.std((0, 2, 3), keepdim=True, unbiased=False) + 1e-9),
        single=True,
    ),
    Row(
        "MeanVarianceNormalization",
        {"x": normal(2, 3)},
        lambda x: (x - x.mean(1, True)) / (x.std(1, keepdim=True, unbiased=False) + 1e-9),
        {"axes": [1]},
        single=True,
    ),
    *(
        Row(
            "LRN",
            {"x": normal(2, 5, 3, 1)},
            lambda x, size=size: F.local_response_norm(x, size, 0.5, 0.75, 2.0),
            {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 2.0},
            single=True,
        )
        for size in (1, 3, 5)
    ),
    *(
        Row(
            "LpNormalization",
            {"x": normal(3, 4)},
            lambda x, p=p, axis=axis: F.normalize(x, p, axis),
            {"p": p, "axis": axis},
        )
        for p in (1, 2)
        for axis in (0, -1)
    ),
)
def test_within_instances_and_over_axes(row: Row) -> None:
    agree(row)


def trained(x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> tuple[Any, Any, Any]:
    """Batch normalization in training mode, with the running statistics that it leaves, as ONNX has them."""
    axes = (0, *range(2, x.ndim))
    now, spread = x.mean(axes), x.var(axes, unbiased=False)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, 2**-7)
    return y, 0.75 * mean + 0.25 * now, 0.75 * variance + 0.25 * spread


@rows(
    *(
        Row(
            "BatchNormalization",
            {"x": normal(3, 4, *inner), **CHANNELS, "mean": normal(4, seed=3), "var": positive(4, seed=4)},
            lambda x, w, b, m, v: (
                (x - _along(m, x)) / (_along(v, x) + 2**-7).sqrt() * _along(w, x) + _along(b, x)
            ),
            {"epsilon": 2**-7},
        )
        for inner in ((), (2,), (2, 1, 3))
    ),
    *(
        Row(
            "BatchNormalization",
            {"x": normal(3, 4, *inner), **CHANNELS, "mean": normal(4, seed=3), "var": positive(4, seed=4)},
            trained,
            {"epsilon": 2**-7, "momentum": 0.75, "training_mode": 1},
            outputs=3,
        )
        for inner in ((), (2,), (2, 3))
    ),
)
def test_batch_normalization(row: Row) -> None:
    agree(row)


def _along(vector: Any, x: Any) -> Any:
    return vector.reshape(-1, *[1] * (x.ndim - 2))


@rows(
    *(
        Row(
            "DequantizeLinear",
            {"x": np.array([[3, -5, 7], [0, 1, -128]], np.int8), "scale": normal(*shape), "zero": zero},
            lambda x, s, z=0, view=view: (x.double() - _viewed(z, view)) * _viewed(s, view),
            attributes,
            opset=21,
            single=True,
        )
        for shape, view, attributes in [
            ((), (), {}),
            ((2,), (2, 1), {"axis": 0}),
            ((3,), (1, 3), {"axis": -1}),
        ]
        for zero in (None, np.full(shape, 2, np.int8))
    )
)
def test_dequantized(row: Row) -> None:
    agree(row)


def _viewed(value: Any, shape: tuple[int, ...]) -> Any:
    return value.reshape(shape) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [
        ("Bernoulli", {"p": np.array([0.25, 0.5])}),
        ("Hardmax", {"x": normal(2, 3).astype(np.float32)}),
        (
            "MelWeightMatrix",
            {
                **{"bins": np.array(3), "length": np.array(8), "rate": np.array(16)},
                **{"low": np.array(1.0, np.float32), "high": np.array(8.0, np.float32)},
            },
        ),
    ],
)
def test_no_derivative(op_type: str, inputs: dict[str, np.ndarray]) -> None:
    """Draws and choices, and a filter bank whose corners are whole numbers of bins."""
    model = single_node(op_type, inputs)
    floats = [name for name, array in inputs.items() if array.dtype.kind == "f"]
    y = evaluator(model)(inputs)["y0"]
    for dx in gradients(model, inputs, {"y0": np.ones_like(y)}, floats).values():
        np.testing.assert_array_equal(dx, 0)


def test_dropout_in_training_divides_by_what_is_kept() -> None:
    """With the mask that the model itself has drawn."""
    inputs = {"x": normal(40, 5), "ratio": np.array(0.25), "training": np.array(True)}
    transformed = quiet_vjp(single_node("Dropout", inputs, outputs=2, seed=3), "x", "y0")
    dy = normal(40, 5, seed=1)
    values = evaluator(transformed)({**inputs, "y0_grad": dy})
    kept = torch.tensor(values["y1"])
    assert 0.5 < kept.double().mean() < 0.95
    x = torch.tensor(inputs["x"], requires_grad=True)
    y = x * kept / 0.75
    np.testing.assert_allclose(values["y0"], y.detach(), rtol=1e-12)
    (expected,) = torch.autograd.grad(y, x, torch.tensor(dy))
    np.testing.assert_allclose(values["x_grad"], expected, rtol=1e-12)
