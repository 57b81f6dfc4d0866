"""Scan against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.float64_operators import REPLACEMENTS
from tests.graphs import parse


def running_products(**attributes: Any) -> onnx.ModelProto:
    """State s and slices x, z of length 3: s ← s·x + w, given out, with z·s; w is captured."""
    body = (
        "b (double[3] s, double[3] x, double[3] z) => (double[3] t, double[3] u, double[3] v) "
        "{ p = Mul(s, x) t = Add(p, w) u = Identity(t) v = Mul(z, t) }"
    )
    given = "".join(f", {name} = {value}" for name, value in attributes.items())
    return parse(
        f"g (double[3] s, double[A,B] x, double[C,D] z, double[3] w) => "
        f"(double[3] t, double[E,F] u, double[G,H] v) "
        f"{{ t, u, v = Scan<body = {body}, num_scan_inputs = 2{given}>(s, x, z) }}"
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_directions": [0, 1]},
        {"scan_input_directions": [1, 0], "scan_output_directions": [0, 1]},
        {"scan_input_axes": [0, 1], "scan_output_axes": [1, 0]},
        {"scan_input_axes": [-2, -1], "scan_output_axes": [0, -1], "scan_output_directions": [1, 1]},
    ],
    ids=str,
)
def test_scan(attributes: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    x, z = generator.standard_normal((2, 5, 3))
    feeds = {"s": np.ones(3), "x": x, "z": z, "w": generator.standard_normal(3)}
    if abs(attributes.get("scan_input_axes", [0, 0])[1]) == 1:
        feeds["z"] = z.T.copy()
    model = running_products(**attributes)
    ours = ReferenceEvaluator(model, new_ops=list(REPLACEMENTS)).run(None, feeds)
    theirs = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-14)
