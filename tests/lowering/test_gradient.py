"""`Gradient`, lowered: where it is taken, what it leads through, and what is said of a wrong one."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import operators, run
from tests.lowering.programs import DOMAIN, program
from tests.oracle import SHAPE_KNOWLEDGE, with_shapes


def lower(graph: str, **options: object) -> onnx.ModelProto:
    """The lowered model, which holds nothing but what the default domain has."""
    result = onnx_grad.lower(program(graph, **options))  # type: ignore[arg-type]
    onnx.checker.check_model(result, full_check=True)
    assert all(opset.domain != DOMAIN for opset in result.opset_import)
    return result


def slope(f, x: float) -> float:
    """f' by a central difference."""
    return (f(x + 1e-4) - f(x - 1e-4)) / 2e-4


X = np.array([0.3, -0.7, 1.2], np.float32)


class TestWhereItIsTaken:
    def test_at_the_tensors_that_are_named_the_forward_pass_is_shared(self) -> None:
        model = lower(
            "g (float[N] x) => (float[N] y, float[N] dx)"
            '{ s = Sin(x) y = Mul(s, x) dx = Gradient<xs=["x"], y="y">(x) }'
        )
        assert operators(model).count("Sin") == 1
        np.testing.assert_allclose(run(model, {"x": X})["dx"], np.sin(X) + X * np.cos(X), rtol=1e-6)

    def test_at_another_value_what_depends_on_it_is_computed_again(self) -> None:
        model = lower(
            "g (float[N] x, float[N] w, float[M] x1) => (float y, float[M] dx) {"
            "e = ReduceMax<keepdims = 0>(w) s = Sin(x) p = Mul(s, x) q = Mul(p, e)"
            'y = ReduceSum<keepdims = 0>(q) dx = Gradient<xs=["x"], y="y">(x1) }'
        )
        assert operators(model).count("ReduceMax") == 1
        assert operators(model).count("Sin") == 2
        x1 = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
        values = run(model, {"x": X, "w": X, "x1": x1})
        np.testing.assert_allclose(values["dx"], 1.2 * (np.sin(x1) + x1 * np.cos(x1)), rtol=1e-6)
        np.testing.assert_allclose(values["y"], (1.2 * np.sin(X) * X).sum(), rtol=1e-6)

    def test_zs_are_replaced_too_and_get_no_gradient(self) -> None:
        model = lower(
            "g (float x, float z, float z1) => (float dx)"
            '{ y = Mul(x, z) dx = Gradient<xs=["x"], zs=["z"], y="y">(x, z1) }'
        )
        assert run(model, {"x": 2.0, "z": 3.0, "z1": 5.0})["dx"] == 5.0

    def test_zs_may_be_integers(self) -> None:
        model = lower(
            "g (float[3] x, int64[1] i, int64[1] i1) => (float[3] dx)"
            '{ y = Gather(x, i) dx = Gradient<xs=["x"], zs=["i"], y="y">(x, i1) }'
        )
        given = {"x": X, "i": np.array([0]), "i1": np.array([2])}
        np.testing.assert_array_equal(run(model, given)["dx"], [0, 0, 1])

    def test_one_value_for_two_tensors(self) -> None:
        model = lower(
            "g (float a, float b) => (float da, float db)"
            '{ p = Mul(a, b) y = Mul(p, a) da, db = Gradient<xs=["a", "b"], y="y">(b, b) }'
        )
        values = run(model, {"a": 2.0, "b": 3.0})
        assert (values["da"], values["db"]) == (18.0, 9.0)

    def test_a_value_that_is_read_on_the_way_as_well(self) -> None:
        model = lower(
            'g (float a, float c) => (float d) { y = Mul(a, c) d = Gradient<xs=["a"], y="y">(c) }',
        )
        assert run(model, {"a": 2.0, "c": 3.0})["d"] == 3.0

    def test_two_tensors_swapped(self) -> None:
        model = lower(
            "g (float a, float b) => (float da, float db)"
            '{ p = Mul(a, a) y = Mul(p, b) da, db = Gradient<xs=["a", "b"], y="y">(b, a) }'
        )
        values = run(model, {"a": 2.0, "b": 3.0})
        assert (values["da"], values["db"]) == (2 * 3.0 * 2.0, 9.0)

    def test_intermediate_tensors(self) -> None:
        model = lower(
            "g (float x, float h1) => (float dh, float dh1) { h = Exp(x) y = Mul(h, h)"
            'dh = Gradient<xs=["h"], y="y">(h) dh1 = Gradient<xs=["h"], y="y">(h1) }'
        )
        values = run(model, {"x": 0.5, "h1": 4.0})
        np.testing.assert_allclose(values["dh"], 2 * np.exp(0.5), rtol=1e-6)
        assert values["dh1"] == 8.0

    def test_initializers(self) -> None:
        model = lower(
            "g (float x) => (float dw, float dw1) <float w = {3}, float w1 = {5}> {"
            "p = Mul(x, w) y = Mul(p, w)"
            'dw = Gradient<xs=["w"], zs=["x"], y="y">(w, x) dw1 = Gradient<xs=["w"], y="y">(w1) }'
        )
        values = run(model, {"x": 2.0})
        assert (values["dw"], values["dw1"]) == (12.0, 20.0)

    def test_of_a_tensor_by_itself(self) -> None:
        model = lower('g (float[N] x, float[M] u) => (float[M] dx) { dx = Gradient<xs=["x"], y="x">(u) }')
        np.testing.assert_array_equal(run(model, {"x": X, "u": X[:2]})["dx"], [1, 1])

    def test_of_several_elements_it_is_the_gradient_of_their_sum(self) -> None:
        model = lower(
            "g (float[2,3] w, float[3] x) => (float[3] dx) { y = MatMul(w, x)"
            'dx = Gradient<xs=["x"], zs=["w"], y="y">(x, w) }'
        )
        w = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(run(model, {"w": w, "x": X})["dx"], w.sum(axis=0))

    def test_outputs_may_be_left_out(self) -> None:
        model = lower(
            "g (float a, float b) => (float db)"
            '{ y = Mul(a, b) "", db = Gradient<xs=["a", "b"], y="y">(a, b) }'
        )
        assert run(model, {"a": 2.0, "b": 3.0})["db"] == 2.0

    def test_a_loss_that_is_declared_after_its_gradients(self) -> None:
        """Two steps of descent; the function is the part of the graph from their result to the loss."""
        model = lower(
            "g (float x0) => (float x2, float loss) <float rate = {0.25}> {"
            'g0 = Gradient<xs=["x2"], y="loss">(x0) s0 = Mul(g0, rate) x1 = Sub(x0, s0)'
            'g1 = Gradient<xs=["x2"], y="loss">(x1) s1 = Mul(g1, rate) x2 = Sub(x1, s1) loss = Mul(x2, x2) }'
        )
        values = run(model, {"x0": 1.0})
        assert (values["x2"], values["loss"]) == (0.25, 0.0625)

    @pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
    def test_whatever_is_known_of_shapes(self, knowledge: str) -> None:
        model = program(
            "g (double[2,3] x, double[3] b, double[4,3] x1) => (double[4,3] dx, double[3] db) {"
            "s = Add(x, b) t = Tanh(s) m = ReduceMean<keepdims = 0>(t) y = Mul(m, m)"
            'dx, db = Gradient<xs=["x", "b"], y="y">(x1, b) }'
        )
        model = onnx_grad.lower(with_shapes(model, knowledge))
        x1, b = np.linspace(-1, 1, 12).reshape(4, 3), np.array([0.1, 0.2, 0.3])
        values = run(model, {"x": np.zeros((2, 3)), "b": b, "x1": x1})
        t = np.tanh(x1 + b)
        expected = 2 * t.mean() * (1 - t * t) / t.size
        assert values["dx"].dtype == np.float64
        np.testing.assert_allclose(values["dx"], expected, rtol=1e-12)
        np.testing.assert_allclose(values["db"], expected.sum(axis=0), rtol=1e-12)


class TestRepeatedAndNested:
    def test_to_the_third_order(self) -> None:
        model = lower(
            "g (float x) => (float g1, float g2, float g3) { a = Mul(x, x) b = Mul(a, a) y = Mul(b, x)"
            'g1 = Gradient<xs=["x"], y="y">(x) g2 = Gradient<xs=["x"], y="g1">(x)'
            'g3 = Gradient<xs=["x"], y="g2">(x) }'
        )
        assert run(model, {"x": 2.0}) == {"g1": 80.0, "g2": 160.0, "g3": 240.0}

    def test_third_order_at_another_point(self) -> None:
        model = lower(
            "g (float x, float u) => (float g3) { y = Sin(x)"
            'g1 = Gradient<xs=["x"], y="y">(x) g2 = Gradient<xs=["x"], y="g1">(x)'
            'g3 = Gradient<xs=["x"], y="g2">(u) }'
        )
        np.testing.assert_allclose(run(model, {"x": 0.5, "u": 0.9})["g3"], -np.cos(0.9), rtol=1e-6)

    def test_the_example_of_the_specification_against_pytorch(self) -> None:
        torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
        model = lower(
            "g (float[4,3] X, float[3,1] W, float[4,1] L) => (float O, float[4,3] dx, float[3,1] dw) {"
            "Y = MatMul(X, W) E = Sub(Y, L) S = Mul(E, E) C = Mul(S, E) O = ReduceSum<keepdims = 0>(C)"
            'dOdX, dOdW = Gradient<xs=["X", "W"], zs=["L"], y="O">(X, W, L)'
            'dx, dw = Gradient<xs=["X", "W"], zs=["L"], y="dOdW">(X, W, L) }'
        )
        generator = np.random.default_rng(0)
        shapes = {"X": (4, 3), "W": (3, 1), "L": (4, 1)}
        given = {n: generator.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
        tensors = {name: torch.tensor(array, requires_grad=True) for name, array in given.items()}
        loss = ((tensors["X"] @ tensors["W"] - tensors["L"]) ** 3).sum()
        (first,) = torch.autograd.grad(loss, tensors["W"], create_graph=True)
        dx, dw = torch.autograd.grad(first.sum(), [tensors["X"], tensors["W"]])
        values = run(model, given)
        np.testing.assert_allclose(values["dx"], dx, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values["dw"], dw, rtol=1e-4, atol=1e-5)
        # The gradient by X of the first node is read by nothing, and the known shapes need no run-time sums.
        assert "NonZero" not in operators(model)
        assert "dOdX" not in {name for node in model.graph.node for name in node.output}

    def test_by_a_tensor_that_the_first_does_not_name(self) -> None:
        model = lower(
            "g (float x, float w) => (float d) { p = Mul(w, x) y = Mul(p, x)"
            'dx = Gradient<xs=["x"], y="y">(x) d = Gradient<xs=["w"], y="dx">(w) }'
        )
        assert run(model, {"x": 3.0, "w": 2.0})["d"] == 6.0

    def test_the_order_of_the_nodes_does_not_matter(self) -> None:
        model = lower(
            'g (float x) => (float g2) { g2 = Gradient<xs=["x"], y="g1">(x) g1 = Gradient<xs=["x"], y="y">(x)'
            "a = Mul(x, x) y = Mul(a, x) }"
        )
        assert run(model, {"x": 2.0})["g2"] == 12.0

    def test_gradients_of_one_graph_at_many_points(self) -> None:
        model = lower(
            "g (float x, float u, float v) => (float a, float b, float c) { s = Exp(x) y = Mul(s, x)"
            'a = Gradient<xs=["x"], y="y">(x) b = Gradient<xs=["x"], y="y">(u)'
            'c = Gradient<xs=["x"], y="y">(v) }'
        )
        values = run(model, {"x": 0.1, "u": 0.2, "v": 0.3})
        for name, x in zip("abc", (0.1, 0.2, 0.3), strict=True):
            np.testing.assert_allclose(values[name], np.exp(x) * (1 + x), rtol=1e-6)


class TestControlFlow:
    def test_through_a_loop_at_the_named_and_at_another_value(self) -> None:
        model = lower(
            "g (float x, float w, int64 n, float x1) => (float dx, float dw, float d0) <bool go = {1}> {"
            "k = Sin(w) r = Loop(n, go, x) <body = b (int64 i, bool c, float s) => (bool c2, float s2)"
            "{ c2 = Identity(c) q = Mul(s, k) s2 = Add(q, s) }> y = Mul(r, r)"
            'dx, dw = Gradient<xs=["x", "w"], y="y">(x1, x) d0 = Gradient<xs=["x"], y="y">(x) }'
        )
        # Forward for the named values, forward again for the others; the gradients need no iteration more.
        assert Counter(operators(model))["Loop"] == 2
        values = run(model, {"x": 0.5, "w": 0.3, "x1": 0.7, "n": np.array(3)})
        f = lambda x, w: (x * (1 + np.sin(w)) ** 3) ** 2  # noqa: E731
        np.testing.assert_allclose(values["dx"], slope(lambda x: f(x, 0.5), 0.7), rtol=1e-5)
        np.testing.assert_allclose(values["dw"], slope(lambda w: f(0.7, w), 0.5), rtol=1e-5)
        np.testing.assert_allclose(values["d0"], slope(lambda x: f(x, 0.3), 0.5), rtol=1e-5)

    def test_in_the_body_of_a_loop_and_through_it_from_outside(self) -> None:
        model = lower(
            "g (float x, int64 n) => (float r, float dx) <bool go = {1}> {"
            "r = Loop(n, go, x) <body = b (int64 i, bool c, float s) => (bool c2, float s2) {"
            "c2 = Identity(c) q = Mul(s, s) h = Mul(q, x)"
            'ds, dx0 = Gradient<xs=["s", "x"], y="h">(s, x) s2 = Add(ds, dx0) }>'
            'dx = Gradient<xs=["x"], y="r">(x) }'
        )

        def f(x: float, n: int = 2) -> float:
            s = x
            for _ in range(n):
                s = 2 * s * x + s * s
            return s

        values = run(model, {"x": 0.5, "n": np.array(2)})
        np.testing.assert_allclose(values["r"], f(0.5), rtol=1e-6)
        np.testing.assert_allclose(values["dx"], slope(f, 0.5), rtol=1e-5)

    def test_in_the_body_of_a_scan(self) -> None:
        model = lower(
            "g (float[T] xs, float w) => (float[T] ys, float dw) <float zero = {0}> {"
            "f, ys = Scan<num_scan_inputs = 1, body = b (float s, float x) => (float s2, float o) {"
            "q = Mul(w, x) s2 = Add(q, s) p = Mul(s2, s2)"
            'd = Gradient<xs=["w"], y="p">(x) o = Mul(d, s2) }>(zero, xs)'
            't = ReduceSum<keepdims = 0>(ys) dw = Gradient<xs=["w"], y="t">(w) }'
        )
        xs = np.array([0.5, 0.3, 0.2], np.float32)

        def ys(w: float) -> np.ndarray:
            s, results = 0.0, []
            for x in xs.astype(float):
                d, s = 2 * (x * x + s) * x, w * x + s
                results.append(d * s)
            return np.array(results)

        values = run(model, {"xs": xs, "w": 0.7})
        np.testing.assert_allclose(values["ys"], ys(0.7), rtol=1e-6)
        np.testing.assert_allclose(values["dw"], slope(lambda w: ys(w).sum(), 0.7), rtol=1e-5)

    @pytest.mark.parametrize("taken", [True, False])
    def test_in_a_branch_names_are_of_the_graphs_around_it(self, taken: bool) -> None:
        model = lower(
            "g (float x, bool c) => (float r) { h = Sin(x) y = Mul(h, h) r = If(c) <"
            'then_branch = t () => (float a) { a = Gradient<xs=["x"], y="y">(x) },'
            'else_branch = e () => (float b) { k = Exp(y) b = Gradient<xs=["x"], y="k">(h) }> }'
        )
        y = lambda x: np.sin(x) ** 2  # noqa: E731
        expected = slope(y, 0.7) if taken else slope(lambda x: np.exp(y(x)), np.sin(0.7))
        result = run(model, {"x": 0.7, "c": np.array(taken)})["r"]
        np.testing.assert_allclose(result, expected, rtol=1e-5)

    def test_a_branch_that_is_computed_again_reads_the_other_value(self) -> None:
        model = lower(
            "g (float[N] x, bool c, float[M] u) => (float[M] dx) { h = If(c) <"
            "then_branch = t () => (float[N] a) { a = Mul(x, x) },"
            "else_branch = e () => (float[N] b) { b = Identity(x) }>"
            'y = Mul(h, x) dx = Gradient<xs=["x"], y="y">(u) }'
        )
        u = np.array([2.0, 3.0], np.float32)
        for taken, expected in ((True, 3 * u * u), (False, 2 * u)):
            values = run(model, {"x": X, "c": np.array(taken), "u": u})
            np.testing.assert_allclose(values["dx"], expected, rtol=1e-6)


class TestWhatItLeadsThrough:
    def test_functions_of_the_specification_are_expanded(self) -> None:
        torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
        model = lower(
            "g (float[N,3] x, int64[N] t, float[M,3] u, int64[M] v) => (float loss, float[M,3] dx)"
            '{ loss = SoftmaxCrossEntropyLoss(x, t) dx = Gradient<xs=["x"], zs=["t"], y="loss">(u, v) }'
        )
        x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        t = np.array([0, 2, 1, 1])
        leaf = torch.tensor(x, requires_grad=True)
        torch.nn.functional.cross_entropy(leaf, torch.tensor(t)).backward()
        values = run(model, {"x": x[:2], "t": t[:2], "u": x, "v": t})
        np.testing.assert_allclose(values["dx"], leaf.grad, rtol=1e-5, atol=1e-7)

    def test_functions_of_the_model_are_expanded(self) -> None:
        model = lower(
            'g (float x) => (float dx) { y = local.cube(x) dx = Gradient<xs=["x"], y="y">(x) }',
            functions='<domain: "local", opset_import: ["": 18]> '
            "cube (a) => (b) { s = Mul(a, a) b = Mul(s, a) }",
        )
        assert run(model, {"x": 2.0})["dx"] == 12.0

    @pytest.mark.parametrize("opset", [13, 18])
    def test_inside_of_a_function_names_are_the_functions(self, opset: int) -> None:
        """Its tensors are renamed where it is called, twice here, and its x is not the model's."""
        model = lower(
            "g (float x, float u) => (float a, float b) { y = Exp(x) a = local.outer(u) b = local.slope(y) }",
            opset=opset,
            functions=f'<domain: "local", opset_import: ["": {opset}, "{DOMAIN}": 1]> '
            'slope (x) => (d) { s = Sin(x) y = Mul(s, x) d = Gradient<xs=["x"], y="y">(x) }'
            f'<domain: "local", opset_import: ["": {opset}, "local": 1]> '
            "outer (x) => (d) { h = Add(x, x) d = local.slope(h) }",
        )
        values = run(model, {"x": 0.5, "u": 0.4})
        for name, at in (("a", 0.8), ("b", np.exp(0.5))):
            np.testing.assert_allclose(values[name], np.sin(at) + at * np.cos(at), rtol=1e-6)

    def test_sequences_are_expressed_over_tensors(self) -> None:
        model = lower(
            "g (float[N] x) => (float[N] dx) { y = Sin(x) s = SequenceConstruct(x, y)"
            'c = ConcatFromSequence<axis = 0>(s) q = Mul(c, c) dx = Gradient<xs=["x"], y="q">(x) }'
        )
        expected = 2 * X + 2 * np.sin(X) * np.cos(X)
        np.testing.assert_allclose(run(model, {"x": X})["dx"], expected, rtol=1e-5)

    def test_operators_of_onnx_runtime_at_another_shape(self) -> None:
        model = onnx_grad.lower(
            program(
                "g (float[3] x, float[2] u) => (float[2] dx) { p = Mul(x, x) y = com.microsoft.Gelu(p)"
                'dx = Gradient<xs=["x"], y="y">(u) }'
            )
        )
        u = np.array([0.5, -1.0], np.float32)
        torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
        leaf = torch.tensor(u, requires_grad=True)
        torch.nn.functional.gelu(leaf * leaf).sum().backward()
        np.testing.assert_allclose(run(model, {"x": X, "u": u})["dx"], leaf.grad, rtol=1e-5)

    def test_a_step_of_an_optimizer(self) -> None:
        """What a learning rate does to the loss after the step."""
        model = lower(
            "g (float[2] w, float rate, int64 t, float[2] v) => (float d) { p = Mul(w, w) l = Mul(p, w)"
            'dw = Gradient<xs=["w"], y="l">(w) w1, v1 = Momentum<alpha = 0.9, beta = 1.0, mode = "nesterov",'
            "norm_coefficient = 0.1>(rate, t, w, dw, v) q = Mul(w1, w1)"
            'd = Gradient<xs=["rate"], y="q">(rate) }'
        )
        w, v = np.array([0.5, -0.4]), np.array([0.1, 0.3])

        def loss(rate: float) -> float:
            g = 3 * w * w + 0.1 * w
            return float(((w - rate * (g + 0.9 * (0.9 * v + g))) ** 2).sum())

        given = {"w": w.astype(np.float32), "v": v.astype(np.float32), "rate": 0.2, "t": np.array(3)}
        np.testing.assert_allclose(run(model, given)["d"], slope(loss, 0.2), rtol=1e-5)

    def test_models_of_old_opsets(self) -> None:
        torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
        model = lower(
            "g (float[2,3,4] x) => (float[2,3,4] dx) { s = Softmax<axis = 1>(x) y = Mul(s, s)"
            'dx = Gradient<xs=["x"], y="y">(x) }',
            opset=11,
        )
        x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
        leaf = torch.tensor(x, requires_grad=True)
        (torch.softmax(leaf.reshape(2, 12), 1) ** 2).sum().backward()
        np.testing.assert_allclose(run(model, {"x": x})["dx"], leaf.grad, rtol=1e-4, atol=1e-7)


class TestErrors:
    @pytest.mark.parametrize(
        ("graph", "error", "message"),
        [
            (
                'g (float image) => (float d) { y = Exp(image) d = Gradient<xs=["imag"], y="y">(image) }',
                onnx_grad.UnknownNameError,
                "Gradient node 'd', attribute xs.*'imag'.*'image'",
            ),
            (
                'g (float x) => (float d) { loss = Mul(x, x) d = Gradient<xs=["x"], y="los">(x) }',
                onnx_grad.UnknownNameError,
                "attribute y.*'los'.*'loss'",
            ),
            (
                'g (float x) => (float d) { y = Mul(x, x) d = Gradient<xs=["x"], y="y">(x, x) }',
                onnx_grad.ModelError,
                r"'d' has 2 input\(s\) for the 1 tensor",
            ),
            (
                'g (float x) => (float d, float e) { y = Mul(x, x) d, e = Gradient<xs=["x"], y="y">(x) }',
                onnx_grad.ModelError,
                "2 outputs for 1 tensor",
            ),
            (
                "g (float x) => (float d) { h = Exp(x) y = Mul(h, x)"
                'd = Gradient<xs=["h"], zs=["x"], y="y">(h, x) }',
                onnx_grad.ModelError,
                "'h' is computed from 'x'.*leave one of them out",
            ),
            (
                'g (int64 x) => (float d) { y = Cast<to = 1>(x) d = Gradient<xs=["x"], y="y">(x) }',
                onnx_grad.NotDifferentiableError,
                "'x' is of type.*INT64.*list it in zs",
            ),
            (
                'g (float x) => (float d) { y = Cast<to = 7>(x) d = Gradient<xs=["x"], y="y">(x) }',
                onnx_grad.NotDifferentiableError,
                "y, 'y', is of type",
            ),
            (
                'g (float x, double u) => (float d) { y = Mul(x, x) d = Gradient<xs=["x"], y="y">(u) }',
                onnx_grad.ModelError,
                "'u' is to stand for 'x'.*Cast",
            ),
            (
                'g (float x) => (float d) { y = Mul(x, d) d = Gradient<xs=["x"], y="y">(x) }',
                onnx_grad.ModelError,
                "'d' differentiates what is computed from its own output",
            ),
            (
                'g (float x, bool c) => (float d) { d = Gradient<xs=["x"], y="inside">(x) r = If(c) <'
                "then_branch = t () => (float inside) { inside = Mul(x, x) },"
                "else_branch = e () => (float b) { b = Identity(x) }> }",
                onnx_grad.UnknownNameError,
                "'inside'",
            ),
        ],
    )
    def test_what_is_wrong_is_said(self, graph: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            onnx_grad.lower(program(graph))

    def test_all_nodes_that_block_are_named(self) -> None:
        model = program(
            "g (float x, float z) => (float a, float b, float c) {"
            "[one] h = custom.Odd(x) [two] y = custom.Even(h) [three] k = custom.Strange(z)"
            'a = Gradient<xs=["x"], y="y">(x) b = Gradient<xs=["z"], y="k">(z)'
            'c = Gradient<xs=["x"], y="a">(x) }'
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match=r"^3 node\(s\) between xs and y") as raised:
            onnx_grad.lower(model)
        assert all(f"'{name}'" in str(raised.value) for name in ("one", "two", "three"))

    def test_an_operator_that_blocks_beside_the_way_does_not_matter(self) -> None:
        model = program(
            "g (float x, float z) => (float dx) { k = custom.Odd(z) y = Mul(x, k)"
            'dx = Gradient<xs=["x"], zs=["k"], y="y">(x, x) }'
        )
        assert "Odd" in operators(onnx_grad.lower(model))

    def test_a_name_inside_of_a_function_is_not_one_of_the_model(self) -> None:
        model = program(
            "g (float x, float y) => (float d) { d = local.slope(x) }",
            functions=f'<domain: "local", opset_import: ["": 18, "{DOMAIN}": 1]> '
            'slope (a) => (d) { s = Sin(a) d = Gradient<xs=["a"], y="y">(a) }',
        )
        with pytest.raises(onnx_grad.UnknownNameError, match=r"in a function.*'y'"):
            onnx_grad.lower(model)

    def test_a_gradient_without_a_path_is_zeros_and_warned_of(self) -> None:
        model = program(
            "g (float[N] x, float[M] u) => (float[N] dx, float[M] du)"
            '{ y = Mul(x, x) dx, du = Gradient<xs=["x", "u"], y="y">(x, u) }'
        )
        with pytest.warns(onnx_grad.NoPathWarning, match="'dx'.*from 'u' to 'y'") as caught:
            lowered = onnx_grad.lower(model)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(run(lowered, {"x": X, "u": X[:2]})["du"], [0, 0])

    def test_the_model_itself_is_not_changed(self) -> None:
        model = program('g (float x) => (float d) { y = Mul(x, x) d = Gradient<xs=["x"], y="y">(x) }')
        before = model.SerializeToString()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            onnx_grad.lower(model)
        assert model.SerializeToString() == before
