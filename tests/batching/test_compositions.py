"""Fused operators over batches: as what their gradient composes them of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.batching.examples import check, mapped_together, scans
from tests.rules.fused import node_model

Array = np.ndarray


def _normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X = _normal(2, 3, 4)
CASES: list[tuple[str, dict[str, Array], dict[str, Any]]] = [
    ("FusedConv", {"x": _normal(2, 2, 5, 5), "w": _normal(3, 2, 3, 3)}, {"activation": "Relu"}),
    ("FusedGemm", {"a": _normal(2, 3), "b": _normal(3, 4), "c": _normal(4)}, {"activation": "Relu"}),
    (
        "SkipLayerNormalization",
        {"x": X, "s": X[::-1].copy(), "g": _normal(4), "b": _normal(4)[::-1].copy()},
        {},
    ),
    ("MultiHeadAttention", {"q": X, "k": X * 0.5, "v": X[::-1].copy()}, {"num_heads": 2}),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CASES, ids=[case[0] for case in CASES])
def test_against_each_example(operator: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    model = node_model(operator, inputs, **attributes)
    for names in (list(inputs)[:1], list(inputs)):
        batched = check(model, mapped_together(inputs, names), dict.fromkeys(names, 0), axis_size=3)
        assert scans(batched) == []
        assert operator not in {node.op_type for node in batched.graph.node}


def test_in_a_scan_where_nothing_composes_it() -> None:
    model = node_model("QuickGelu", {"x": X})
    batched = check(model, mapped_together({"x": X}, ["x"]), {"x": 0})
    assert scans(batched) == ["com.microsoft.QuickGelu"]
