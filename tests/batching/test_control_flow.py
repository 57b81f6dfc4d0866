"""If, Loop and Scan over batches: bodies batched where the way is the same for all examples."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.batching.examples import batch_of, check, scans
from tests.graphs import parse

Array = np.ndarray
X = np.linspace(-1.0, 1.2, 6, dtype=np.float32).reshape(2, 3)
Y = np.array([0.3, 0.7, -0.4], dtype=np.float32)


def _bodies(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type in ("If", "Loop", "Scan")]


IF = parse("""
    g (bool c, float[2,3] x, float[3] y) => (float[a,b] z) {
        z = If (c) <then_branch = t () => (float[2,3] p) { p = Mul(x, y) },
                   else_branch = e () => (float[3] q) { q = Neg(y) }>
    }
""")


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("names", ["x", "y", "xy"])
def test_if_on_a_shared_condition(condition: bool, names: str) -> None:
    inputs = {"c": np.array(condition), "x": X, "y": Y}
    inputs |= {name: batch_of(inputs[name]) for name in names}
    batched = check(IF, inputs, dict.fromkeys(names, 0))
    assert _bodies(batched) == ["If"]


def test_if_on_a_condition_of_each_example() -> None:
    model = parse("""
        g (bool c, float[2,3] x, float[3] y) => (float[2,3] z) {
            z = If (c) <then_branch = t () => (float[2,3] p) { p = Mul(x, y) },
                       else_branch = e () => (float[2,3] q) { q = Neg(x) }>
        }
    """)
    inputs = {"c": np.array([True, False, True]), "x": batch_of(X), "y": Y}
    batched = check(model, inputs, {"c": 0, "x": 0})
    assert scans(batched) == ["If"]


LOOP = parse("""
    g (int64 n, float[2,3] x, float[3] y)
        => (float[2,3] last, float[3] fixed, float[k,2,3] stack, float[k] ones) {
        start = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
        keep = Constant <value = bool {1}> ()
        last, fixed, stack, ones = Loop (n, keep, x, start) <body =
            b (int64 i, bool p, float[2,3] u, float[3] v)
                => (bool q, float[2,3] w, float[3] s, float[2,3] o, float r) {
                q = Identity(p)
                w = Mul(u, y)
                s = Identity(v)
                o = Sin(w)
                r = Constant <value = float {1.0}> ()
            }>
    }
""")


@pytest.mark.parametrize("trips", [0, 1, 3])
@pytest.mark.parametrize("names", ["x", "y", "xy"])
def test_loop_of_shared_length(trips: int, names: str) -> None:
    inputs = {"n": np.array(trips, dtype=np.int64), "x": X, "y": Y}
    inputs |= {name: batch_of(inputs[name]) for name in names}
    batched = check(LOOP, inputs, dict.fromkeys(names, 0))
    assert _bodies(batched) == ["Loop"]


def test_a_state_that_one_iteration_makes_differ_is_a_batch_from_the_start() -> None:
    model = parse("""
        g (int64 n, float[2] x) => (float[2] z) {
            keep = Constant <value = bool {1}> ()
            zero = Constant <value = float[2] {0.0, 0.0}> ()
            a, z = Loop (n, keep, zero, zero) <body =
                b (int64 i, bool p, float[2] u, float[2] v) => (bool q, float[2] w, float[2] s) {
                    q = Identity(p)
                    w = Add(u, x)
                    s = Add(v, u)
                }>
        }
    """)
    inputs = {"n": np.array(3, dtype=np.int64), "x": batch_of(X[0, :2])}
    assert scans(check(model, inputs, {"x": 0})) == []


def test_loop_whose_length_differs_between_the_examples() -> None:
    model = parse("""
        g (int64 n, float[2] x) => (float[2] z) {
            keep = Constant <value = bool {1}> ()
            z = Loop (n, keep, x) <body = b (int64 i, bool p, float[2] u) => (bool q, float[2] w) {
                q = Identity(p)
                w = Sin(u)
            }>
        }
    """)
    inputs = {"n": np.array([2, 0, 3], dtype=np.int64), "x": batch_of(X[0, :2])}
    assert scans(check(model, inputs, {"n": 0, "x": 0})) == ["Loop"]


def test_loop_that_stacks_as_many_slices_as_it_runs_is_refused() -> None:
    with pytest.raises(onnx_grad.UnsupportedOpError, match="number of its iterations differs"):
        onnx_grad.vmap(LOOP, {"n": 0})


SCAN = parse("""
    g (float[2] h, float[2,4] x, float[2] y) => (float[2] last, float[2,4] out) {
        last, out = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
                          scan_input_directions = [1], body =
            b (float[2] u, float[2] v) => (float[2] w, float[2] o) {
                uy = Mul(u, y)
                w = Add(uy, v)
                o = Tanh(w)
            }> (h, x)
    }
""")


@pytest.mark.parametrize("names", ["h", "x", "y", "hx", "hxy"])
def test_scan(names: str) -> None:
    inputs = {"h": Y[:2], "x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4), "y": Y[1:]}
    inputs |= {name: batch_of(inputs[name]) for name in names}
    batched = check(SCAN, inputs, dict.fromkeys(names, 0))
    assert _bodies(batched) == ["Scan"]
    assert scans(batched) == []


@pytest.mark.parametrize("names", ["x", "y"])
def test_gradients_of_control_flow(names: str) -> None:
    inputs = {"n": np.array(2, dtype=np.int64), "x": X, "y": Y}
    gradient = onnx_grad.vjp(LOOP, ["x", "y"], "last")
    inputs |= {"last_grad": batch_of(X[::-1].copy())}
    inputs |= {name: batch_of(inputs[name]) for name in names}
    check(gradient, inputs, {"last_grad": 0, **dict.fromkeys(names, 0)})


def test_gradient_of_a_batched_loop() -> None:
    batched = onnx_grad.vmap(LOOP, {"x": 0})
    gradient = onnx_grad.vjp(batched, ["x", "y"], "last")
    inputs = {"n": np.array(2, dtype=np.int64), "x": batch_of(X), "y": Y}
    seeds = {"last_grad": batch_of(X[::-1].copy())}
    f = onnx_grad.GradientFunction.from_gradient_model(gradient)
    actual = f(inputs, cotangents={"last": seeds["last_grad"]}).gradients
    one = onnx_grad.GradientFunction(LOOP, ["x", "y"], "last")
    expected = [
        one({**inputs, "x": x}, cotangents={"last": dy}).gradients
        for x, dy in zip(inputs["x"], seeds["last_grad"], strict=True)
    ]
    np.testing.assert_allclose(actual["x"], np.stack([e["x"] for e in expected]), rtol=1e-5)
    np.testing.assert_allclose(actual["y"], sum(e["y"] for e in expected), rtol=1e-5)


def test_what_no_body_depends_on_stays_as_it_is() -> None:
    model = parse("""
        g (int64 n, float[2] x, float[2] y) => (float[2] z, float[2] s) {
            keep = Constant <value = bool {1}> ()
            z = Loop (n, keep, y) <body = b (int64 i, bool p, float[2] u) => (bool q, float[2] w) {
                q = Identity(p)
                w = Sin(u)
            }>
            s = Add(z, x)
        }
    """)
    inputs = {"n": np.array(2, dtype=np.int64), "x": batch_of(Y[:2]), "y": Y[1:]}
    batched = check(model, inputs, {"x": 0})
    (loop,) = (node for node in batched.graph.node if node.op_type == "Loop")
    assert list(loop.input) == ["n", "keep", "y"]
