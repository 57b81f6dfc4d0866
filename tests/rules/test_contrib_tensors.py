"""Inverse, ExpandDims and other operators that ONNX Runtime had before the specification, against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.rules.fused import ALWAYS, RANKED, check, indices, normal, torch


def _invertible(*shape: int) -> np.ndarray:
    return normal(*shape) + 3 * np.eye(shape[-1])


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)], ids=str)
def test_inverse(shape: tuple[int, ...]) -> None:
    check("Inverse", {"x": _invertible(*shape)}, torch.linalg.inv, shapes=ALWAYS)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("constants", [(), ("axis",)], ids=["run time", "constant"])
def test_expand_dims(axis: int, constants: tuple[str, ...]) -> None:
    check(
        "ExpandDims",
        {"x": normal(2, 3), "axis": np.array(axis, dtype=np.int32)},
        lambda x, _: x.unsqueeze(axis),
        shapes=ALWAYS,
        constants=constants,
    )


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [np.array(1), None], ids=["k", "no k"])
def test_trilu(upper: int, k: np.ndarray | None) -> None:
    cut = torch.triu if upper else torch.tril
    check("Trilu", {"x": normal(2, 3, 4), "k": k}, lambda x, _: cut(x, 0 if k is None else 1), upper=upper)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalars", "vectors"])
@pytest.mark.parametrize("has_delta", [True, False])
def test_range(shape: tuple[int, ...], has_delta: bool) -> None:
    def count(start: Any, limit: Any, delta: Any) -> Any:
        step = 1.0 if delta is None else delta
        return start + step * torch.arange(6 if has_delta else 3, dtype=torch.float64)

    check(
        "Range",
        {
            "start": np.full(shape, 1.0),
            "limit": np.full(shape, 4.0),
            "delta": np.full(shape, 0.5) if has_delta else None,
        },
        count,
        shapes=ALWAYS,
    )


def test_gather_nd() -> None:
    check(
        "GatherND",
        {"x": normal(2, 3, 4), "indices": indices([0, 1], [1, 2], [0, 1])},
        lambda x, i: x[i[:, 0].long(), i[:, 1].long()],
        shapes=RANKED,
    )


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode: str) -> None:
    def pad(x: Any, _: Any, value: Any) -> Any:
        if mode == "constant":
            inside = torch.nn.functional.pad(torch.ones_like(x), (1, 2, 0, 1))
            return torch.nn.functional.pad(x, (1, 2, 0, 1)) + value * (1 - inside)
        name = {"edge": "replicate"}.get(mode, mode)
        return torch.nn.functional.pad(x[None], (1, 2, 0, 1), mode=name)[0]

    check(
        "Pad",
        {
            "x": normal(2, 3, 4),
            "pads": np.array([[0, 0, 1, 0, 1, 2]]),
            "value": np.array([0.5]) if mode == "constant" else None,
        },
        pad,
        shapes=RANKED,
        mode=mode,
    )


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_cdist(metric: str) -> None:
    def distance(a: Any, b: Any) -> Any:
        squares = ((a[:, None] - b) ** 2).sum(-1)
        return squares if metric == "sqeuclidean" else squares.sqrt()

    check("CDist", {"a": normal(3, 4), "b": normal(5, 4)}, distance, shapes=ALWAYS, metric=metric)
