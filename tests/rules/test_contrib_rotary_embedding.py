"""RotaryEmbedding of ONNX Runtime's domain against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import with_shapes
from tests.rules.fused import check, node_model, normal, torch

HALVES = (np.float32, np.float16)
COS, SIN = normal(10, 4), normal(10, 4, seed=1)
GIVEN = np.array([[0, 3, 9, 1, 2], [5, 4, 4, 8, 7]])
SINGLE = np.array([3])


def rotate(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """The first elements of the last axis of [batch, heads, sequence, size] rotated."""
    half = cos.shape[-1]
    pairs, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (pairs[..., ::2], pairs[..., 1::2]) if interleaved else pairs.split(half, -1)
    turned = first * cos - second * sin, first * sin + second * cos
    joined = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([joined, rest], -1)


def _reference(heads: int, interleaved: bool) -> Any:
    def rotary_embedding(x: Any, positions: Any, cos: Any, sin: Any) -> Any:
        by_head = x if x.dim() == 4 else x.unflatten(2, (heads, -1)).transpose(1, 2)
        at = positions if positions.dim() == 2 else positions + torch.arange(by_head.shape[2])[None]
        y = rotate(by_head, cos[at][:, None], sin[at][:, None], interleaved)
        return y if x.dim() == 4 else y.transpose(1, 2).flatten(2)

    return rotary_embedding


@pytest.mark.parametrize("positions", [GIVEN, SINGLE], ids=["given", "from one on"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 5, 24)], ids=["heads apart", "heads packed"])
def test_every_form(shape: tuple[int, ...], interleaved: int, positions: np.ndarray) -> None:
    check(
        "RotaryEmbedding",
        {"x": normal(*shape), "positions": positions, "cos": COS, "sin": SIN},
        _reference(3, bool(interleaved)),
        dtypes=HALVES,
        second_order=positions is GIVEN,
        interleaved=interleaved,
    )


@pytest.mark.parametrize("shape", [(2, 3, 5, 12), (2, 5, 36)], ids=["heads apart", "heads packed"])
def test_a_part_of_each_head_is_left_as_it_is(shape: tuple[int, ...]) -> None:
    check(
        "RotaryEmbedding",
        {"x": normal(*shape), "positions": GIVEN, "cos": COS, "sin": SIN},
        _reference(3, False),
        num_heads=3,
        rotary_embedding_dim=8,
    )


def test_the_scale_has_no_effect() -> None:
    check(
        "RotaryEmbedding",
        {"x": normal(2, 3, 5, 8), "positions": GIVEN, "cos": COS, "sin": SIN},
        _reference(3, False),
        second_order=False,
        scale=0.5,
    )


def test_an_unknown_rank_is_refused() -> None:
    inputs = {"x": normal(2, 3, 5, 8), "positions": GIVEN, "cos": COS, "sin": SIN}
    with pytest.raises(onnx_grad.UnsupportedOpError, match="the rank of its input is not known"):
        onnx_grad.vjp(with_shapes(node_model("RotaryEmbedding", inputs), "unknown"))
