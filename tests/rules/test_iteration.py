"""Loop and Scan: states, slices, captured tensors, trip counts, axes and directions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import operators, parse, run
from tests.oracle import check, quiet_vjp

RANDOM = np.random.default_rng(0)
STATE = RANDOM.standard_normal(3)
WEIGHT = RANDOM.standard_normal((3, 3)) / 2

RECURRENCE = """
    recurrence (double[3] h, double[T,3] x, double[3,3] w) => (double[3] last, double[T,3] ys) {
        last, ys = Scan <num_scan_inputs = 1, body = step (double[3] before, double[3] e)
                         => (double[3] after, double[3] y) {
            moved = MatMul (before, w)
            sum = Add (moved, e)
            after = Tanh (sum)
            y = Mul (after, e)
        }> (h, x)
    }
"""

POWERS = """
    powers (int64 n, double[3] h, double[3,3] w) => (double[3] last, double[T,3] ys) {
        going = Constant <value = bool {1}> ()
        last, ys = Loop <body = step (int64 i, bool goes, double[3] before)
                         => (bool goes_on, double[3] after, double[3] y) {
            goes_on = Identity (goes)
            moved = MatMul (before, w)
            count = Cast <to = 11> (i)
            scaled = Mul (moved, count)
            after = Sin (scaled)
            y = Mul (after, before)
        }> (n, going, h)
    }
"""

UNTIL_LARGE = """
    until_large (double[3] h, double[3] w) => (double[3] last) {
        going = Constant <value = bool {1}> ()
        last = Loop <body = step (int64 i, bool goes, double[3] before) => (bool goes_on, double[3] after) {
            grown = Mul (before, w)
            after = Add (grown, w)
            size = ReduceMax <keepdims = 0> (after)
            limit = Constant <value = double {20.0}> ()
            goes_on = Less (size, limit)
        }> ("", going, h)
    }
"""


def test_scan() -> None:
    inputs = {"h": STATE, "x": RANDOM.standard_normal((4, 3)), "w": WEIGHT}
    check(parse(RECURRENCE), inputs, second_order=True)


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_loop_with_a_trip_count_that_is_an_input(trips: int) -> None:
    check(parse(POWERS), {"n": np.array(trips), "h": STATE, "w": WEIGHT}, second_order=True)


def test_loop_that_ends_by_what_it_computes() -> None:
    inputs = {"h": np.array([0.5, 0.7, 0.9]), "w": np.array([1.1, 1.5, 2.0])}
    check(parse(UNTIL_LARGE), inputs, second_order=True)


@pytest.mark.parametrize("read_axis", [0, 1, -1])
@pytest.mark.parametrize("write_axis", [0, 1, -2])
@pytest.mark.parametrize("directions", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_axes_and_directions_of_a_scan(read_axis: int, write_axis: int, directions: tuple[int, int]) -> None:
    model = parse(
        f"""
        sums (double[2] h, double[2,2] x) => (double[2] last, double[2,2] ys) {{
            last, ys = Scan <num_scan_inputs = 1, scan_input_axes = [{read_axis}],
                scan_output_axes = [{write_axis}], scan_input_directions = [{directions[0]}],
                scan_output_directions = [{directions[1]}],
                body = step (double[2] before, double[2] e) => (double[2] after, double[2] y) {{
                    product = Mul (before, e)
                    after = Sin (product)
                    y = Mul (after, e)
                }}> (h, x)
        }}"""
    )
    inputs = {"h": STATE[:2], "x": RANDOM.standard_normal((2, 2))}
    check(model, inputs, shapes=["static", "unknown"])


def test_several_states_and_slices() -> None:
    model = parse(
        """
        several (double[2] a, double b, double[T,2] x, double[T] k)
            => (double[2] p, double q, double[T] ys, double[T,2] zs) {
            p, q, ys, zs = Scan <num_scan_inputs = 2,
                body = step (double[2] a0, double b0, double[2] e, double f)
                    => (double[2] a1, double b1, double y, double[2] z) {
                    z = Mul (a0, e)
                    a1 = Add (z, b0)
                    b1 = Mul (f, b0)
                    y = Mul (b1, f)
                }> (a, b, x, k)
        }"""
    )
    inputs = {
        "a": STATE[:2],
        "b": np.array(0.7),
        "x": RANDOM.standard_normal((3, 2)),
        "k": RANDOM.standard_normal(3),
    }
    check(model, inputs, second_order=True)
    check(model, inputs, of=["q"], shapes=["static"])
    check(model, inputs, of=["zs"], wrt=["b"], shapes=["static"])


def test_captured_activation_gets_its_gradient() -> None:
    model = parse(
        """
        captured (double[2] h, double[2] u) => (double[2] last) {
            activation = Exp (u)
            three = Constant <value = int64 {3}> ()
            last = Loop <
                body = step (int64 i, bool goes, double[2] before) => (bool goes_on, double[2] after) {
                goes_on = Identity (goes)
                constant = Constant <value = double[2] {0.5, 1.5}> ()
                product = Mul (before, activation)
                shifted = Add (product, constant)
                after = Sigmoid (shifted)
            }> (three, "", h)
        }"""
    )
    check(model, {"h": STATE[:2], "u": STATE[1:]}, second_order=True)


def test_a_loop_that_runs_needs_no_if() -> None:
    with_constant = POWERS.replace("int64 n, ", "").replace(
        "going =", "n = Constant <value = int64 {3}> ()\n going ="
    )
    assert "If" not in operators(onnx_grad.vjp(parse(with_constant)))
    assert "If" in operators(onnx_grad.vjp(parse(POWERS)))


def test_what_is_kept_is_the_smaller() -> None:
    """The state of 3 numbers is kept, and the 100 that depend on it are computed again."""
    model = parse(
        """
        wide (float[3] h, float[3,100] w, float[100,3] v) => (float[3] last) {
            three = Constant <value = int64 {3}> ()
            last = Loop <body = step (int64 i, bool goes, float[3] before) => (bool goes_on, float[3] after) {
                goes_on = Identity (goes)
                wide = MatMul (before, w)
                curved = Tanh (wide)
                after = MatMul (curved, v)
            }> (three, "", h)
        }"""
    )
    gradient = onnx_grad.vjp(model)
    (loop,) = (node for node in gradient.graph.node if node.op_type == "Loop")
    (body,) = (a.g for a in loop.attribute)
    kept = [value.type.tensor_type.shape.dim[0].dim_value for value in body.output[2:]]
    assert kept == [3]


def test_an_operator_inside_is_expanded_and_named() -> None:
    model = parse(
        """
        cropped (float[4] h, float[T,4] x) => (float[4] last) {
            last = Scan <num_scan_inputs = 1, body = step (float[4] before, float[4] e) => (float[4] after) {
                two = Constant <value = int64[1] {2}> ()
                cropped = CenterCropPad (e, two)
                twice = Concat <axis = 0> (cropped, cropped)
                after = Mul (before, twice)
            }> (h, x)
        }"""
    )
    gradients = run(onnx_grad.vjp(model), {"h": [1, 2, 3, 4], "x": [[5, 6, 7, 8]], "last_grad": [1, 1, 1, 1]})
    np.testing.assert_array_equal(gradients["h_grad"], [6, 7, 6, 7])
    np.testing.assert_array_equal(gradients["x_grad"], [[0, 1 + 3, 2 + 4, 0]])


def test_a_state_that_grows_is_refused() -> None:
    model = parse(
        """
        growing (int64 n, float[1] h) => (float[M] last) {
            last = Loop <body = step (int64 i, bool goes, float[1] before) => (bool goes_on, float[2] after) {
                goes_on = Identity (goes)
                after = Concat <axis = 0> (before, before)
            }> (n, "", h)
        }"""
    )
    with pytest.raises(
        onnx_grad.UnsupportedOpError, match=r"Loop.*its state 'before' starts with shape \[1\]"
    ):
        onnx_grad.vjp(model)


def test_what_blocks_inside_is_named() -> None:
    model = parse(
        """
        blocked (float[2] h, float[T,2] x) => (float[2] last) {
            last = Scan <num_scan_inputs = 1, body = step (float[2] before, float[2] e) => (float[2] after) {
                [inner] after = BitCast <to = 1> (before)
            }> (h, x)
        }""",
        opset=26,
    )
    with pytest.raises(onnx_grad.UnsupportedOpError, match=r"node 'inner' \(BitCast\)"):
        onnx_grad.vjp(model)


def test_float32_of_onnx_runtime() -> None:
    """A recurrence of known result: h' = h·x, so the gradient of the product is the product of the others."""
    model = parse(
        """
        product (float h, float[T] x) => (float last) {
            last = Scan <num_scan_inputs = 1, body = step (float before, float e) => (float after) {
                after = Mul (before, e)
            }> (h, x)
        }"""
    )
    result = run(onnx_grad.grad(model), {"h": 1.0, "x": [2, 3, 4]})
    assert result["h_grad"] == 24
    np.testing.assert_array_equal(result["x_grad"], [12, 8, 6])


def test_the_gradient_graph_is_valid_and_typed() -> None:
    gradient = quiet_vjp(parse(RECURRENCE))
    onnx.checker.check_model(gradient, full_check=True)
    shapes = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in gradient.graph.output
    }
    assert shapes["h_grad"] == [3]
    assert shapes["x_grad"] == ["T", 3]
    assert shapes["w_grad"] == [3, 3]


def test_a_matrix_product_adds_to_the_sum_over_iterations() -> None:
    """So that the gradient of a captured weight needs no second tensor of its size in an iteration."""
    _, gradient = (node for node in quiet_vjp(parse(RECURRENCE), "w").graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in gradient.attribute if attribute.name == "body")
    accumulated = body.output[1].name
    (product,) = (node for node in body.node if accumulated in node.output)
    assert product.op_type == "Gemm"
    assert len(product.input) == 3
