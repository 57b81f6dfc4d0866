"""Gelu and its relatives, BiasAdd and BiasSoftmax against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rules.fused import ALWAYS, check, normal, torch

# ONNX Runtime has no kernel of Erf for float64, and onnx's reference computes it in float32.
ERF = 1e-5

BIASES = pytest.mark.parametrize("bias", [normal(4), None], ids=["bias", "no bias"])


def test_gelu() -> None:
    check("Gelu", {"x": normal(2, 3, 4)}, torch.nn.functional.gelu, shapes=ALWAYS, rtol=ERF)


@pytest.mark.parametrize("alpha", [1.702, 1.0, -0.5])
def test_quick_gelu(alpha: float) -> None:
    alpha = float(np.float32(alpha))
    check(
        "QuickGelu",
        {"x": normal(2, 3, 4)},
        lambda x: x * torch.sigmoid(alpha * x),
        shapes=ALWAYS,
        alpha=alpha,
    )


def test_the_default_of_quick_gelu() -> None:
    check("QuickGelu", {"x": normal(3)}, lambda x: x * torch.sigmoid(float(np.float32(1.702)) * x))


@BIASES
def test_fast_gelu(bias: np.ndarray | None) -> None:
    check(
        "FastGelu",
        {"x": normal(2, 3, 4), "b": bias},
        lambda x, b: torch.nn.functional.gelu(x if b is None else x + b, approximate="tanh"),
        shapes=ALWAYS,
    )


def test_bias_gelu() -> None:
    check(
        "BiasGelu",
        {"x": normal(2, 3, 4), "b": normal(4)},
        lambda x, b: torch.nn.functional.gelu(x + b),
        shapes=ALWAYS,
        rtol=ERF,
    )


def test_bias_split_gelu() -> None:
    def gated(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = (x + b).chunk(2, dim=-1)
        return left * torch.nn.functional.gelu(right)

    check(
        "BiasSplitGelu",
        {"x": normal(2, 3, 8), "b": normal(8)},
        gated,
        dtypes=(),
        shapes=ALWAYS,
        rtol=ERF,
    )


def test_bias_add() -> None:
    inputs = {"x": normal(2, 3, 4), "b": normal(4), "skip": normal(2, 3, 4, seed=1)}
    check("BiasAdd", inputs, lambda x, b, skip: x + b + skip, dtypes=(), shapes=ALWAYS)


@pytest.mark.parametrize(
    ("axis", "shape", "is_inner"),
    [(3, (2, 1, 1, 4), 1), (-1, (3, 4), 0), (2, (1, 3, 3, 4), 0), (1, (2, 1, 3, 4), 0)],
    ids=str,
)
def test_bias_softmax(axis: int, shape: tuple[int, ...], is_inner: int) -> None:
    def softmax(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = x + b
        return torch.softmax(total.flatten(axis % 4), dim=-1).reshape(total.shape)

    inputs = {"x": normal(2, 3, 3, 4), "b": normal(*shape)}
    check("BiasSoftmax", inputs, softmax, dtypes=(), shapes=ALWAYS, axis=axis, is_inner_broadcast=is_inner)
