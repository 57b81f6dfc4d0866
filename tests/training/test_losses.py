"""Losses: values and gradients are PyTorch's, for every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.training import (
    L1,
    LOSSES,
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    Huber,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihood,
    Term,
    training_model,
)
from tests.graphs import input_names, parse, run
from tests.training.networks import classifier, identity

WEIGHT = [0.1, 0.2, 0.3, 0.4, 0.5]


def value_and_slope(
    loss: Any, x: np.ndarray, target: np.ndarray, declared: list[int | str | None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    model = training_model(identity(declared or list(x.shape), dtype), loss, target="t")
    w = np.ones(1, np.float64 if x.dtype == np.float64 else np.float32)
    results = run(model, {"x": x, "t": target, "w": w})
    return results["loss"], results["w_grad"]


def compare(
    loss: Loss,
    oracle: Callable[..., Any],
    x: np.ndarray,
    target: np.ndarray,
    declared: list[int | str | None] | None = None,
    **options: Any,
) -> None:
    torch = pytest.importorskip("torch", reason="the values are compared with PyTorch's")
    value, slope = value_and_slope(loss, x, target, declared)
    w = torch.ones(1, requires_grad=True, dtype=torch.from_numpy(x).dtype)
    expected = oracle(torch.from_numpy(x) * w, torch.from_numpy(np.asarray(target)), **options)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(slope, w.grad.numpy(), rtol=2e-5, atol=1e-6)


def functional() -> Any:
    return pytest.importorskip("torch", reason="the values are compared with PyTorch's").nn.functional


@pytest.mark.parametrize("reduction", ["mean", "sum"])
class TestElementwise:
    x = (np.random.default_rng(1).normal(size=(4, 5)) * 3).astype(np.float32)
    target = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
    binary = (np.random.default_rng(3).random((4, 5)) < 0.5).astype(np.float32)

    def test_mean_squared_error(self, reduction: Any) -> None:
        loss = MeanSquaredError(reduction=reduction)
        compare(loss, functional().mse_loss, self.x, self.target, reduction=reduction)

    def test_l1(self, reduction: Any) -> None:
        compare(L1(reduction=reduction), functional().l1_loss, self.x, self.target, reduction=reduction)

    def test_huber(self, reduction: Any) -> None:
        loss = Huber(0.7, reduction=reduction)
        compare(loss, functional().huber_loss, self.x, self.target, reduction=reduction, delta=0.7)

    def test_binary_cross_entropy(self, reduction: Any) -> None:
        torch = pytest.importorskip("torch", reason="the values are compared with PyTorch's")
        oracle = functional().binary_cross_entropy_with_logits
        for weight in (None, [0.5, 1.0, 2.0, 3.0, 4.0]):
            loss = BinaryCrossEntropy(weight, reduction=reduction)
            as_tensor = None if weight is None else torch.tensor(weight)
            compare(loss, oracle, self.x, self.binary, reduction=reduction, pos_weight=as_tensor)

    def test_cosine(self, reduction: Any) -> None:
        torch = pytest.importorskip("torch", reason="the values are compared with PyTorch's")

        def oracle(x: Any, t: Any) -> Any:
            return functional().cosine_embedding_loss(x, t, torch.ones(4), reduction=reduction)

        compare(Cosine(reduction=reduction), oracle, self.x, self.target)


CLASS_SHAPES = [([6, 5], None), ([6, 5, 3, 2], ["n", 5, "h", "w"]), ([6, 5], ["n", "c"]), ([5], None)]


@pytest.mark.parametrize(("shape", "declared"), CLASS_SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_classes(shape: list[int], declared: Any, reduction: Any) -> None:
    torch = pytest.importorskip("torch", reason="the values are compared with PyTorch's")
    rng = np.random.default_rng(4)
    x = (rng.normal(size=shape) * 3).astype(np.float32)
    labels = rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    ignorable = 2 if labels.ndim else -100
    options = [(None, -100, 0.0), (None, ignorable, 0.1), (WEIGHT, -100, 0.1), (WEIGHT, ignorable, 0.0)]
    for weight, ignored, smoothing in options:
        common = {
            "weight": None if weight is None else torch.tensor(weight),
            "ignore_index": ignored,
            "reduction": reduction,
        }
        loss = CrossEntropy(weight, ignored, label_smoothing=smoothing, reduction=reduction)
        oracle = functional().cross_entropy
        compare(loss, oracle, x, labels, declared, label_smoothing=smoothing, **common)
        if smoothing:
            continue
        likelihood = NegativeLogLikelihood(weight, ignored, reduction=reduction)
        compare(likelihood, functional().nll_loss, x, labels, declared, **common)


def test_classes_on_the_last_axis_of_a_tensor_of_unknown_rank() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    labels = np.array([[0, 1, 2], [3, 4, 0]])
    for weight in (None, WEIGHT):
        losses = []
        for axis, values in ((-1, x), (1, x.transpose(0, 2, 1).copy())):
            loss = CrossEntropy(weight, label_smoothing=0.1, axis=axis)
            trained = parse("g (float[] x) => (float[] y) <float[1] w = {1}> { y = Mul (x, w) }")
            made = training_model(trained, loss, target="t")
            losses.append(run(made, {"x": values, "t": labels, "w": [1.0]})["loss"])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    x = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    for loss, target in ((CrossEntropy(), np.array([1, 1])), (BinaryCrossEntropy(), np.ones_like(x))):
        value, slope = value_and_slope(loss, x, target)
        assert np.isfinite(value)
        assert np.isfinite(slope)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_has_a_slope_of_one_half_at_zero(dtype: Any) -> None:
    model = parse(
        f"g ({'float' if dtype is np.float32 else 'double'}[1] x) => "
        f"({'float' if dtype is np.float32 else 'double'}[1] y) "
        f"<{'float' if dtype is np.float32 else 'double'}[1] w = {{0}}> {{ y = Add (x, w) }}"
    )
    made = training_model(model, BinaryCrossEntropy(), target="t")
    results = run(made, {"x": np.zeros(1, dtype), "t": np.ones(1, dtype), "w": np.zeros(1, dtype)})
    np.testing.assert_allclose(results["w_grad"], [-0.5])
    np.testing.assert_allclose(results["loss"], np.log(2.0), rtol=1e-6)


def test_outputs_in_half_precision_are_compared_in_single() -> None:
    x = np.full((64, 4), 200.0, np.float16)
    value, slope = value_and_slope(MeanSquaredError(reduction="sum"), x, np.zeros_like(x))
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, 64 * 4 * 200.0**2)
    assert slope.dtype == np.float32


def test_every_loss_has_a_name() -> None:
    for name, kind in LOSSES.items():
        target = np.array([1, 0]) if issubclass(kind, NegativeLogLikelihood) else np.ones((2, 3), np.float32)
        x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
        np.testing.assert_array_equal(
            value_and_slope(name, x, target)[0], value_and_slope(kind(), x, target)[0]
        )


class TestForms:
    """The ways to say which loss is meant."""

    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1])

    def feeds(self) -> dict[str, np.ndarray]:
        model = classifier()
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        return {"x": self.x, **weights}

    def test_terms_add_up_with_their_weights(self) -> None:
        separate = [
            run(training_model(classifier(), loss, target="t"), {**self.feeds(), "t": target})["loss"]
            for loss, target in (("cross_entropy", self.labels), ("l1", np.zeros((5, 3), np.float32)))
        ]
        terms = [
            Term("logits", "cross_entropy", target="labels"),
            Term("logits", L1(), target="zeros", weight=0.25),
        ]
        both = training_model(classifier(), terms)
        feeds = {**self.feeds(), "labels": self.labels, "zeros": np.zeros((5, 3), np.float32)}
        np.testing.assert_allclose(run(both, feeds)["loss"], separate[0] + 0.25 * separate[1], rtol=1e-6)

    def test_a_target_is_named_after_its_output(self) -> None:
        assert "logits_target" in input_names(training_model(classifier(), "cross_entropy"))

    def test_a_function_builds_on_tensors_by_name(self) -> None:
        def loss(op: Any, tensors: Any) -> Any:
            target = tensors.input("wanted", "float32", ["batch", 3])
            return op.ReduceMean(op.Abs(tensors["logits"] - target), keepdims=0)

        wanted = np.ones((5, 3), np.float32)
        own = run(training_model(classifier(), loss), {**self.feeds(), "wanted": wanted})
        named = run(training_model(classifier(), "l1", target="wanted"), {**self.feeds(), "wanted": wanted})
        for name in ("loss", "w1_grad"):
            np.testing.assert_allclose(own[name], named[name], rtol=1e-6)

    def test_an_onnx_model_over_the_outputs(self) -> None:
        loss = parse(
            """g (float[batch,3] logits, float[batch,3] wanted) => (float loss) <float[1] w1 = {1}> {
                h = Sub (logits, wanted)
                d = Abs (h)
                s = Mul (d, w1)
                loss = ReduceMean <keepdims=0> (s)
            }""",
            opset=17,
        )
        wanted = np.ones((5, 3), np.float32)
        made = training_model(classifier(), loss)
        own = run(made, {**self.feeds(), "wanted": wanted})
        named = run(training_model(classifier(), "l1", target="wanted"), {**self.feeds(), "wanted": wanted})
        for name in ("loss", "w1_grad", "b2_grad"):
            np.testing.assert_allclose(own[name], named[name], rtol=1e-6)
        assert not any("of_loss" in name for name in input_names(made))

    def test_an_output_that_is_the_loss(self) -> None:
        model = parse(
            """g (float[batch,3] x) => (float[batch,3] y, float cost) <float[3] w = {1,2,3}> {
                y = Mul (x, w)
                cost = ReduceSumSquare <keepdims=0> (y)
            }"""
        )
        x = np.ones((2, 3), np.float32)
        results = run(training_model(model, "cost"), {"x": x, "w": [1, 2, 3]})
        np.testing.assert_allclose(results["w_grad"], [4, 8, 12])

    def test_bad_requests_are_refused(self) -> None:
        integers = parse("g (float[n] x) => (int64[n] y) <float[1] w={1}> {a=Mul(x,w) y=Cast<to=7>(a)}")
        two = parse("g (float[3] x) => (float[3] y, float[3] z) <float[1] w={1}> {y=Mul(x,w) z=Neg(y)}")
        for model, loss, kind, message in (
            (integers, "mean_squared_error", onnx_grad.NotDifferentiableError, "no float output"),
            (integers, [Term("y", "l1")], onnx_grad.NotDifferentiableError, "'y' is of type INT64"),
            (two, "l1", onnx_grad.InputError, "2 float outputs"),
            (two, "z", onnx_grad.NotDifferentiableError, "one element"),
            (classifier(), "cross_entropi", onnx_grad.UnknownNameError, "'cross_entropy'"),
            (classifier(), [Term("logit", "l1")], onnx_grad.UnknownNameError, "'logits'"),
            (classifier(), [], onnx_grad.InputError, "empty"),
            (classifier(), CrossEntropy([1.0]), onnx_grad.InputError, "1 entries"),
            (classifier(), CrossEntropy(axis=7), onnx_grad.InputError, "axis"),
            (classifier(), lambda op, tensors: 1.0, onnx_grad.InputError, "float"),
            (classifier(), lambda op, tensors: op.Nope(tensors["x"]), onnx_grad.InputError, "Nope"),
            (
                classifier(),
                lambda op, tensors: tensors.input("t", "floaty", []),
                onnx_grad.InputError,
                "floaty",
            ),
        ):
            with pytest.raises(kind, match=message):
                training_model(model, loss)
        with pytest.raises(onnx_grad.InputError, match="scalar"):
            L1(reduction="none")  # type: ignore[arg-type]
