"""Elements that are not used give no NaN, however singular the functions are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad import singularities
from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, graph_model, with_shapes

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow")

# Bodies of models y = f(x); points where some branch is singular, and the derivative of what is used.
GUARDED = {
    "square root of positive numbers": (
        "c = Greater(x, zero) r = Sqrt(x) y = Where(c, r, zero)",
        [-1.0, 0.0, 4.0],
        [0.0, 0.0, 0.25],
    ),
    "logarithm of positive numbers": (
        "c = Greater(x, zero) r = Log(x) y = Where(c, r, zero)",
        [-1.0, 0.0, 4.0],
        [0.0, 0.0, 0.25],
    ),
    "x ln x": (
        "c = Greater(x, zero) l = Log(x) r = Mul(x, l) y = Where(c, r, zero)",
        [-1.0, 0.0, np.e],
        [0.0, 0.0, 2.0],
    ),
    "quotient": (
        "z = Equal(x, zero) r = Div(one, x) y = Where(z, zero, r)",
        [0.0, 2.0],
        [0.0, -0.25],
    ),
    "reciprocal": (
        "z = Equal(x, zero) r = Reciprocal(x) y = Where(z, zero, r)",
        [0.0, 2.0],
        [0.0, -0.25],
    ),
    "remainder": (
        "z = Equal(x, zero) r = Mod<fmod = 1>(one, x) y = Where(z, zero, r)",
        [0.0, 0.4],
        [0.0, -2.0],
    ),
    "logarithm of a sum": (
        "c = Greater(x, zero) u = Unsqueeze(x, axes) r = ReduceLogSum<keepdims = 0>(u, axes) "
        "y = Where(c, r, zero)",
        [0.0, 4.0],
        [0.0, 0.25],
    ),
    "sinc": (
        "z = Equal(x, zero) s = Sin(x) r = Div(s, x) y = Where(z, one, r)",
        [0.0, np.pi],
        [0.0, -1 / np.pi],
    ),
    "power": (
        "c = Greater(x, zero) r = Pow(x, e) y = Where(c, r, zero)",
        [-1.0, 0.0, 4.0],
        [0.0, 0.0, -0.3 * 4**-1.3],
    ),
    "exponential without overflow": (
        "c = Less(x, one) r = Exp(x) y = Where(c, r, zero)",
        [1e4, 0.0],
        [0.0, 1.0],
    ),
    "arc sine": (
        "a = Abs(x) c = Less(a, one) r = Asin(x) y = Where(c, r, zero)",
        [1.0, -1.0, 2.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
    ),
    "mask times norm": (
        "c = Greater(x, zero) m = Cast<to = 11>(c) r = Sqrt(x) y = Mul(r, m)",
        [0.0, 4.0],
        [0.0, 0.25],
    ),
    "clamped logarithm": (
        "r = Log(x) y = Clip(r, low)",
        [0.0, 4.0],
        [0.0, 0.25],
    ),
    "root of a rectified number": (
        "r = Relu(x) y = Sqrt(r)",
        [-1.0, 4.0],
        [0.0, 0.25],
    ),
    "root of a clipped number": (
        "r = Clip(x, zero) y = Sqrt(r)",
        [-1.0, 0.0, 4.0],
        [0.0, np.inf, 0.25],
    ),
    "root of a shrunk number": (
        "r = Shrink(x) y = Sqrt(r)",
        [0.25, 4.0],
        [0.0, 0.25],
    ),
    "logarithm of a maximum, further on": (
        "r = Max(x, zero) s = Reshape(r, shape) t = Add(s, zero) y = Log(t)",
        [-1.0, 4.0],
        [0.0, 0.25],
    ),
    "two branches, both singular": (
        "c = Greater(x, zero) p = Sqrt(x) q = Neg(x) r = Sqrt(q) y = Where(c, p, r)",
        [-4.0, 4.0],
        [-0.25, 0.25],
    ),
}

CONSTANTS = {
    "zero": np.array(0.0),
    "one": np.array(1.0),
    "low": np.array(-100.0),
    "e": np.array(-0.3),
    "shape": np.array([-1]),
    "axes": np.array([1]),
}


def _model(body: str, size: int) -> onnx.ModelProto:
    parsed = onnx.parser.parse_graph(f"body (double[{size}] x) => (double[N] y) {{ {body} }}")
    used = {name: a for name, a in CONSTANTS.items() if any(name in node.input for node in parsed.node)}
    return graph_model(parsed.node, {"x": np.zeros(size)}, ["y"], initializers=used)


def _slope(model: onnx.ModelProto, points: Sequence[float]) -> np.ndarray:
    return gradients(model, {"x": np.array(points)}, {"y": np.ones(len(points))}, ["x"])["x"]


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
@pytest.mark.parametrize(("body", "points", "expected"), GUARDED.values(), ids=list(GUARDED))
def test_no_nan_from_a_branch_not_taken(
    body: str, points: list[float], expected: list[float], knowledge: str
) -> None:
    model = with_shapes(_model(body, len(points)), knowledge)
    np.testing.assert_allclose(_slope(model, points), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["square root of positive numbers", "x ln x", "sinc", "clamped logarithm"])
def test_nor_in_second_derivatives(name: str) -> None:
    body, points, _ = GUARDED[name]
    first = onnx_grad.vjp(with_shapes(_model(body, len(points)), "unknown"), "x")
    ones = np.ones(len(points))
    inputs = {"x": np.array(points), "y_grad": ones}
    second = gradients(first, inputs, {"x_grad": ones}, ["x", "y_grad"])
    assert np.isfinite(second["x"]).all()
    assert np.isfinite(second["y_grad"]).all()
    regular = {"x": np.array(points)[-1:], "y_grad": ones[-1:]}
    check(first, regular, of=["x_grad"], shapes=["static"])


def test_what_is_used_and_undefined_stays_so() -> None:
    model = _model("c = Greater(x, low) r = Sqrt(x) y = Where(c, r, zero)", 3)
    np.testing.assert_array_equal(_slope(model, [-1.0, 0.0, -200.0]), [np.nan, np.inf, 0])


def test_rows_that_are_masked_altogether() -> None:
    """As PyTorch exports attention: softmax gives NaN for a fully masked row, which is then replaced."""
    body = """
        s = Where(keep, x, masked) p = Softmax(s) n = IsNaN(p) y = Where(n, zero, p)
    """
    parsed = onnx.parser.parse_graph(f"body (double[2,3] x, bool[2,3] keep) => (double[2,3] y) {{ {body} }}")
    keep = np.array([[True, True, False], [False, False, False]])
    inputs = {"x": np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), "keep": keep}
    constants = {"masked": np.array(-np.inf), "zero": np.array(0.0)}
    model = graph_model(parsed.node, inputs, ["y"], initializers=constants)
    check(model, inputs, second_order=True)


# Models whose gradient needs neither Where nor IsNaN, which are slow: nothing is singular where it matters.
PLAIN = {
    "rectifier before a matrix": "r = Relu(x) y = MatMul(r, w)",
    "rectifiers in a residual network": "r = Relu(x) s = MatMul(r, w) t = Add(s, r) y = Relu(t)",
    "bounds": "r = Clip(x, zero, one) y = Mul(r, x)",
    "scaled": "r = Relu(x) y = Div(r, two)",
    "squares": "r = Relu(x) y = Pow(r, two)",
    "root away from any selection": "r = Relu(x) s = MatMul(r, w) t = Exp(s) u = Sqrt(t) y = Div(one, u)",
    "layer normalization": """
        a = Relu(x) m = ReduceMean(a, axis) d = Sub(a, m) q = Mul(d, d) v = ReduceMean(q, axis)
        s = Add(v, one) t = Sqrt(s) n = Div(d, t) y = Relu(n)
    """,
    "softmax": "s = Softmax(x) y = Relu(s)",
}


@pytest.mark.parametrize("body", PLAIN.values(), ids=list(PLAIN))
def test_plain_products_where_nothing_is_singular(body: str) -> None:
    parsed = onnx.parser.parse_graph(f"body (double[2,2] x) => (double[M,N] y) {{ {body} }}")
    constants = {
        "zero": np.array(0.0),
        "one": np.array(1.0),
        "two": np.array(2.0),
        "w": np.array([[0.5, -1.0], [2.0, 0.25]]),
        "axis": np.array([-1]),
    }
    inputs = {"x": np.array([[0.3, -0.4], [0.2, 0.7]])}
    model = graph_model(parsed.node, inputs, ["y"], initializers=constants)
    made = {node.op_type for node in onnx_grad.vjp(model, "x").graph.node}
    assert made.isdisjoint({"Where", "IsNaN"})
    check(model, inputs)


def test_looking_around_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many rectifiers looks for a singularity along all that follow; what was found is kept."""
    looked_at = 0
    original = singularities._is_singular

    def counting(node: ir.Node) -> bool:
        nonlocal looked_at
        looked_at += 1
        return original(node)

    monkeypatch.setattr(singularities, "_is_singular", counting)
    length = 300
    nodes = []
    for i in range(length):
        nodes.append(onnx.helper.make_node("Relu", [f"x{i}"], [f"r{i}"]))
        nodes.append(onnx.helper.make_node("Add", [f"x{i}", f"r{i}"], [f"x{i + 1}"]))
    onnx_grad.vjp(graph_model(nodes, {"x0": np.ones(3)}, [f"x{length}"]))
    assert length <= looked_at < 6 * length
