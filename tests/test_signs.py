"""What is known of signs: enough to tell which divisors are protected from zero."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnx_grad import signs
from tests.oracle import graph_model

POSITIVE = [
    "v = Exp(x)",
    "q = Mul(x, x) v = Add(q, eps)",
    "q = Pow(x, two) m = ReduceMean(q) s = Add(m, eps) v = Sqrt(s)",
    "a = Abs(x) v = Add(a, eps)",
    "n = ReduceL2(x) v = Max(n, eps)",
    "v = Clip(x, eps)",
    "v = Clip(x, eps, two)",
    "e = Exp(x) v = ReduceSum(e)",
    "e = Exp(x) v = Mul(e, two)",
    "q = Mul(x, x) s = Add(eps, q) v = Reciprocal(s)",
]

NOT_CERTAINLY_POSITIVE = [
    "v = Identity(x)",
    "v = Add(x, eps)",
    "v = Abs(x)",
    "v = Mul(x, two)",
    "q = Mul(x, x) v = Sqrt(q)",
    "v = Max(x, zero)",
    "v = Clip(x, zero)",
    "v = Clip(x, eps, zero)",
    "v = Pow(x, two)",
    "v = Sum(eps, x)",
    "q = Mul(x, x) v = Sub(q, eps)",
    "v = Add(eps, negative)",
]


def _result(body: str) -> ir.Value:
    parsed = onnx.parser.parse_graph(f"body (double[2] x) => (double[N] v) {{ {body} }}")
    constants = {
        "zero": np.array(0.0),
        "eps": np.array(1e-6),
        "two": np.array(2.0),
        "negative": np.array(-1.0),
    }
    model = graph_model(parsed.node, {"x": np.zeros(2)}, ["v"], initializers=constants)
    return ir.from_proto(model).graph.outputs[0]


@pytest.mark.parametrize("body", POSITIVE)
def test_certainly_positive(body: str) -> None:
    assert signs.is_positive(_result(body))


@pytest.mark.parametrize("body", NOT_CERTAINLY_POSITIVE)
def test_not_certainly_positive(body: str) -> None:
    assert not signs.is_positive(_result(body))


def test_large_constants_are_not_looked_at() -> None:
    small = ir.Value(name="w", const_value=ir.tensor(np.ones(4096, np.float32)))
    large = ir.Value(name="w", const_value=ir.tensor(np.ones(4097, np.float32)))
    assert signs.is_positive(small)
    assert not signs.is_positive(large)


def test_long_chains_are_not_followed_for_ever() -> None:
    chain = " ".join(f"x{i + 1} = Add(x{i}, x{i})" for i in range(200))
    assert not signs.is_positive(_result(f"x0 = Abs(x) {chain} v = Identity(x200)"))
