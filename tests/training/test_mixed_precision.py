"""Half precision for products, float32 for the rest, and dynamic loss scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad.training import SGD, Term, Trainer
from onnx_grad.training.loss_scaling import after_overflow, after_update
from onnx_grad.training.mixed_precision import nodes_in
from onnx_grad.training.state import TrainingState
from onnx_grad.training.training_graph import TrainingNotes, training_graph
from tests.graphs import parse, run
from tests.training.networks import MODELS, classifier, points
from tests.training.test_checkpoints import assert_equal
from tests.training.test_trainer import trainer


def halved(model: Any, precision: str, **options: Any) -> set[str]:
    graph = training_graph(model, "cross_entropy", target="labels", precision=precision, **options)
    dtype = ir.DataType[precision.upper()]
    backward = "pkg.onnx_grad.forward_node"
    return {node.op_type for node in nodes_in(graph, dtype) if backward not in node.metadata_props}


def test_products_are_halved_and_sensitive_sums_are_not() -> None:
    assert halved(classifier(), "float16") == {"MatMul", "Add", "Tanh"}
    assert halved(MODELS / "digits_cnn.onnx", "float16") == {"Conv", "Relu", "Gemm"}
    # Before opset 22 the specification has no Conv in bfloat16.
    assert halved(MODELS / "digits_cnn.onnx", "bfloat16") == {"Gemm"}


@pytest.mark.parametrize("name", ["digits_cnn", "encoder"])
def test_gradients_are_those_of_single_precision_but_for_rounding(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    rng = np.random.default_rng(0)
    if name == "encoder":
        loss: Any = [Term("encoded", "l1", target="t")]
        batch = {n: rng.normal(size=(2, 5, 32)).astype(np.float32) for n in ("embeddings", "t")}
    else:
        loss = [Term("logits", "cross_entropy", target="t")]
        images = np.load(MODELS / "digits.npz")
        batch = {"image": images["image"], "t": images["label"]}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    single = training_graph(path, loss)
    half = training_graph(path, loss, precision="float16", scaled=True)
    notes = TrainingNotes.of(half)
    feeds = {**batch, **{parameter: stored[parameter] for parameter in notes.parameters}}
    expected = run(ir.to_proto(single), feeds)
    results = run(ir.to_proto(half), {**feeds, "loss_scale": np.asarray(256.0, np.float32)})
    np.testing.assert_allclose(results["loss"], expected["loss"], rtol=5e-3)
    largest = max(np.abs(expected[output]).max() for output in notes.parameters.values())
    for output in notes.parameters.values():
        assert results[output].dtype == np.float32
        np.testing.assert_allclose(results[output] / 256.0, expected[output], atol=2e-3 * largest)


def test_values_read_inside_bodies_are_single() -> None:
    model = parse(
        """g (float[n,2] x, bool c) => (float[n,2] y) <float[2,2] w = {1,2,3,4}> {
            h = MatMul (x, w)
            y = If (c) <
                then_branch = yes () => (float[n,2] p) { p = Exp (h) },
                else_branch = no () => (float[n,2] q) { q = Neg (h) }
            >
        }"""
    )
    made = training_graph(model, [Term("y", "l1", target="t")], precision="float16")
    x = np.array([[0.5, -0.5]], np.float32)
    feeds = {"x": x, "c": np.asarray(True), "t": np.zeros((1, 2), np.float32)}
    results = run(ir.to_proto(made), {**feeds, "w": np.array([[1, 2], [3, 4]], np.float32)})
    np.testing.assert_allclose(results["loss"], np.exp([-1.0, -1.0]).mean(), rtol=1e-3)
    assert results["y"].dtype == np.float32


def test_a_training_in_half_precision_learns() -> None:
    t = trainer(precision="float16")
    history = t.fit(points(), 15, evaluation=points(seed=1), metrics=["accuracy"])
    assert history[-1]["evaluation"]["accuracy"] > 0.9
    assert all(value.dtype == np.float32 for value in t.weights().values())


def test_overflowing_gradients_are_left_out_and_the_scale_shrinks() -> None:
    t = trainer(precision="float16", optimizer=SGD(), learning_rate=1.0)
    t.state.loss_scale = 2.0**40
    before = t.weights()
    result = t.step(points())
    assert result.gradient_norm is None
    assert t.state.loss_scale == 2.0**39
    assert t.state.skipped == 1
    assert_equal(before, t.weights())
    while t.state.skipped == t.state.step:
        result = t.step(points())
    reference = trainer(optimizer=SGD(), learning_rate=1.0)
    expected = reference.step(points())
    assert result.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-2)
    for name, value in t.weights().items():
        np.testing.assert_allclose(value, reference.weights()[name], atol=2e-3)


def test_the_scale_grows_when_nothing_overflows() -> None:
    state = TrainingState()
    for _ in range(2000):
        after_update(state)
    assert state.loss_scale == 2.0**17
    assert after_overflow(state)
    assert (state.loss_scale, state.good_steps) == (2.0**16, 0)
    state.loss_scale = 2.0**-10
    assert not after_overflow(state)


def test_scaling_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    first = trainer(precision="float16")
    first.state.loss_scale = 2.0**40
    first.step(points())
    first.save_checkpoint(tmp_path)
    second = trainer(precision="float16")
    assert second.load_checkpoint(tmp_path)
    for _ in range(30):
        assert first.step(points()) == second.step(points())
    assert_equal(first.weights(), second.weights())
    assert first.state == second.state


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(onnx_grad.InputError, match="'float16', 'bfloat16'"):
        trainer(precision="float8")
    with pytest.raises(onnx_grad.RuntimeUnavailableError, match="no kernel"):
        trainer(precision="bfloat16")


def test_a_model_in_half_precision_is_trained_with_master_weights(tmp_path: Path) -> None:
    t = Trainer(classifier(dtype=np.float16), "cross_entropy", target="labels", learning_rate=0.02)
    data = points(dtype=np.float16)
    history = t.fit(data, 15, evaluation=data, metrics=["accuracy"])
    assert history[-1]["evaluation"]["accuracy"] > 0.9
    assert t.weights()["w1"].dtype == np.float32
    t.export(tmp_path / "tuned.onnx")
    tuned = {v.name: v for v in onnx.load(tmp_path / "tuned.onnx").graph.initializer}
    assert tuned["w1"].data_type == onnx.TensorProto.FLOAT16
    rounded = t.weights()["w1"].astype(np.float16)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tuned["w1"]), rounded)
