"""Curves: exported activations of several nodes are differentiated as one function, where that is right."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_grad
from onnx_grad import registry
from onnx_grad.builder import Builder
from tests.graphs import operators, parse, run
from tests.oracle import assert_dual, check, gradients, graph_model
from tests.single_precision import check_in_single_precision

CURVES = {
    "GELU": "u = Div(x, r) e = Erf(u) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)",
    "GELU by tanh": "p = Pow(x, three) s = Add(x, p) t = Tanh(s) a = Add(t, one) y = Mul(x, a)",
    "SiLU": "s = Sigmoid(x) y = Mul(x, s)",
    "Mish": "s = Softplus(x) t = Tanh(s) y = Mul(x, t)",
    "a wave packet": "q = Mul(x, x) n = Neg(q) e = Exp(n) s = Sin(x) c = Cos(s) y = Mul(c, e)",
    "a polynomial": "q = Pow(x, two) a = Sub(q, one) b = Sub(half, x) y = Mul(a, b)",
    "a negative bell": "u = Mul(x, minus) e = Erf(u) y = Mul(e, x)",
}
NUMBERS = ", ".join(
    f"double {name} = {{{number}}}"
    for name, number in {"r": 1.5, "one": 1, "half": 0.5, "two": 2, "three": 3, "minus": -0.7}.items()
)
POINT = np.array([[-1.3, 0.0, 0.4], [2.1, -0.2, 5.0]])


def model(body: str, wide: bool = True, numbers: str = NUMBERS) -> onnx.ModelProto:
    text = f"g (double[n, 3] x) => (double[n, 3] y) <{numbers}> {{ {body} }}"
    return parse(text if wide else text.replace("double", "float"))


def added(of: onnx.ModelProto, gradient: onnx.ModelProto) -> list[str]:
    """The operators of the nodes that were added."""
    return operators(gradient)[len(of.graph.node) :]


@pytest.mark.parametrize("body", CURVES.values(), ids=CURVES)
def test_derivatives_to_the_second_order(body: str) -> None:
    if "Erf" in body:  # onnx's reference computes it in float32, and ONNX Runtime has no kernel for float64
        inputs = {"x": POINT.astype(np.float32)}
        check_in_single_precision(
            model(body, wide=False), inputs, step=0.02, tolerance=2e-3, second_order=True
        )
    else:
        check(model(body), {"x": POINT}, second_order=True)


@pytest.mark.parametrize("body", CURVES.values(), ids=CURVES)
def test_the_cotangent_and_the_tangent_are_multiplied_once(body: str) -> None:
    forward = model(body)
    for derivative in (onnx_grad.vjp(forward), onnx_grad.jvp(forward)):
        seed = derivative.graph.input[-1].name
        reading = [node.op_type for node in derivative.graph.node if seed in node.input]
        assert reading == ["Mul"]


def test_fewer_nodes_than_one_by_one() -> None:
    forward = model(CURVES["GELU"], wide=False)
    assert added(forward, onnx_grad.vjp(forward)) == ["Mul", "Sub", "Exp", "Mul", "Mul", "Add", "Mul"]


def test_against_autograd() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    forward = model(CURVES["GELU"], wide=False, numbers=NUMBERS.replace("1.5", "1.4142135623730951"))
    x = np.linspace(-12, 12, 300, dtype=np.float32).reshape(100, 3)
    leaf = torch.tensor(x, requires_grad=True)
    torch.nn.functional.gelu(leaf).sum().backward()
    values = run(onnx_grad.vjp(forward), {"x": x, "y_grad": np.ones_like(x)})
    np.testing.assert_allclose(values["x_grad"], leaf.grad.numpy(), atol=5e-7)


def test_what_is_between_can_be_asked_for() -> None:
    forward = model(CURVES["GELU"])
    values = gradients(forward, {"x": POINT}, {"y": np.ones_like(POINT)}, ["x", "e"])
    np.testing.assert_allclose(values["e"], 0.5 * POINT)
    alone = gradients(forward, {"x": POINT}, {"y": np.ones_like(POINT)}, ["x"])
    np.testing.assert_allclose(values["x"], alone["x"])


def test_what_is_between_can_be_an_output_or_have_other_readers() -> None:
    text = "g (double[n] x) => (double[n] y, double[n] z) { s = Sigmoid(x) y = Mul(x, s) z = Sin(s) }"
    check(parse(text), {"x": POINT[0]})
    text = "g (double[n] x) => (double[n] y, double[n] s) { s = Sigmoid(x) y = Mul(x, s) }"
    check(parse(text), {"x": POINT[0]})


def test_a_stopped_flow_stays_stopped() -> None:
    forward = model(CURVES["SiLU"])
    values = gradients(forward, {"x": POINT}, {"y": np.ones_like(POINT)}, ["x"], stop=["s"])
    np.testing.assert_allclose(values["x"], 1 / (1 + np.exp(-POINT)))


def test_a_constant_number_can_be_asked_for() -> None:
    """It is not folded into the derivative of the rest then."""
    forward = model("u = Mul(x, half) s = Sigmoid(u) y = Mul(x, s)")
    values = gradients(forward, {"x": POINT}, {"y": np.ones_like(POINT)}, ["x", "half"])
    s = 1 / (1 + np.exp(-POINT / 2))
    np.testing.assert_allclose(values["half"], (POINT * POINT * s * (1 - s)).sum())
    np.testing.assert_allclose(values["x"], s + POINT * s * (1 - s) / 2)


def test_a_number_that_adds_an_axis_is_no_part_of_a_curve() -> None:
    text = (
        "g (double[2] x) => (double[1, 2] y) <double[1, 1] two = {2}>"
        "{ u = Mul(x, two) s = Sigmoid(u) y = Mul(u, s) }"
    )
    check(parse(text), {"x": np.array([0.3, -0.8])})


def test_inside_of_bodies() -> None:
    text = (
        "g (double[3] x, bool c) => (double[3] y) { y = If (c) <"
        "then_branch = t () => (double[3] u) { s = Sigmoid(x) u = Mul(x, s) }, "
        "else_branch = e () => (double[3] v) { t = Tanh(x) v = Mul(t, x) }> }"
    )
    for condition in (True, False):
        inputs = {"x": np.array([0.3, -0.8, 1.1]), "c": np.array(condition)}
        check(parse(text), inputs, wrt=["x"])


@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_half_precision_goes_node_by_node(type_: str) -> None:
    """The derivative alone may overflow there, where its product with a small cotangent does not."""
    forward = parse(f"g ({type_}[n] x) => ({type_}[n] y) {{ s = Sigmoid(x) y = Mul(x, s) }}")
    gradient = onnx_grad.vjp(forward)
    assert sum("y_grad" in node.input for node in gradient.graph.node) == 2


def test_where_elements_may_go_unused_nodes_stay_apart() -> None:
    """x·eˣ overflows where it is not selected: its gradient is zero there, not NaN."""
    text = (
        "g (float[n] x) => (float[n] y) <float zero = {0}, float most = {50}>"
        "{ e = Exp(x) p = Mul(x, e) c = Less(x, most) y = Where(c, p, zero) }"
    )
    x = np.array([1.0, 1000.0], np.float32)
    values = run(onnx_grad.vjp(parse(text)), {"x": x, "y_grad": np.ones(2, np.float32)})
    np.testing.assert_allclose(values["x_grad"], [2 * np.e, 0.0], rtol=1e-6)


def test_a_rule_of_a_users_own_is_followed() -> None:
    original = registry.lookup("", "Sigmoid")

    @registry.gradient("Sigmoid")
    def straight(op: Builder, node: object, dy: object) -> object:
        return dy

    try:
        values = gradients(model(CURVES["SiLU"]), {"x": POINT}, {"y": np.ones_like(POINT)}, ["x"])
    finally:
        registry._table["", "Sigmoid"] = original
    np.testing.assert_allclose(values["x"], 1 / (1 + np.exp(-POINT)) + POINT)


@given(st.data())
def test_random_curves(data: st.DataObject) -> None:
    """Numbers and operators in any order: tangents, cotangents and finite differences agree."""
    unary, names, nodes = ["Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Neg"], ["x"], []
    for number in range(data.draw(st.integers(2, 9))):
        operator = data.draw(st.sampled_from([*unary, "Add", "Sub", "Mul", "Div"]))
        read = [data.draw(st.sampled_from(names))]
        if operator == "Div":
            read.append("two")
        elif operator not in unary:
            read.insert(data.draw(st.integers(0, 1)), data.draw(st.sampled_from([*names, "two", "half"])))
        names.append(f"v{number}")
        nodes.append(onnx.helper.make_node(operator, read, [names[-1]]))
    x = {"x": np.array([0.4, -0.7])}
    numbers = {"two": np.array(2.0), "half": np.array(0.5)}
    forward = graph_model(nodes, x, [names[-1]], initializers=numbers)
    check(forward, x, shapes=["symbolic"], rtol=1e-5, atol=1e-6)
    assert_dual(forward, x)
