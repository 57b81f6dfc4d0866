"""`training_model`, `optimizer_model`, `step_model` and `evaluation_model`: what they take and give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad.training import (
    OptimizerNotes,
    TrainingNotes,
    evaluation_model,
    optimizer_model,
    step_model,
    training_model,
)
from onnx_grad.training.in_place import overwritable
from tests.graphs import input_names, output_names, parse, run
from tests.training.networks import MODELS, classifier, points

CNN = MODELS / "digits_cnn.onnx"


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def notes(model: onnx.ModelProto) -> TrainingNotes:
    return TrainingNotes.of(ir.from_proto(model))


class TestTrainingModel:
    def test_parameters_are_inputs_and_gradients_outputs(self) -> None:
        model = training_model(classifier(), "cross_entropy", target="labels")
        assert input_names(model) == ["x", "labels", "w1", "b1", "w2", "b2"]
        assert output_names(model) == ["logits", "loss", "w1_grad", "b1_grad", "w2_grad", "b2_grad"]
        onnx.checker.check_model(model, full_check=True)

    def test_gradients_are_those_of_pytorch(self) -> None:
        torch = pytest.importorskip("torch", reason="the gradients are compared with PyTorch's")
        model = training_model(classifier(), "cross_entropy", target="labels", gradient_norm=True)
        batch, start = points(), weights(classifier())
        results = run(model, {**batch, **start})
        w = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
        hidden = torch.tanh(torch.from_numpy(batch["x"]) @ w["w1"] + w["b1"])
        loss = torch.nn.functional.cross_entropy(
            hidden @ w["w2"] + w["b2"], torch.from_numpy(batch["labels"])
        )
        loss.backward()
        np.testing.assert_allclose(results["loss"], loss.detach().numpy(), rtol=1e-5)
        for name, value in w.items():
            np.testing.assert_allclose(results[f"{name}_grad"], value.grad.numpy(), rtol=1e-4, atol=1e-6)
        norm = torch.sqrt(sum((value.grad**2).sum() for value in w.values()))
        np.testing.assert_allclose(results["gradient_norm"], norm.numpy(), rtol=1e-5)

    def test_patterns_choose_and_freeze(self) -> None:
        for options, expected in (
            ({"parameters": "w*"}, ["w1", "w2"]),
            ({"parameters": ["b2", "w1"]}, ["w1", "b2"]),
            ({"frozen": "*1"}, ["w2", "b2"]),
        ):
            model = training_model(classifier(), "cross_entropy", **options)
            assert list(notes(model).parameters) == expected
            assert set(expected).isdisjoint(weights(model))

    def test_bad_patterns_are_refused(self) -> None:
        for options in ({"parameters": "v*"}, {"frozen": ["w1", "W"]}):
            with pytest.raises(onnx_grad.UnknownNameError):
                training_model(classifier(), "cross_entropy", **options)
        with pytest.raises(onnx_grad.NotDifferentiableError, match="nothing is left"):
            training_model(classifier(), "cross_entropy", frozen="*")

    def test_gradients_are_added_to_given_sums(self) -> None:
        plain = training_model(classifier(), "cross_entropy", target="labels")
        model = training_model(classifier(), "cross_entropy", target="labels", accumulate=True)
        batch, start = points(), weights(classifier())
        single = run(plain, {**batch, **start})
        sums = {f"{name}_grad_sum": np.ones_like(value) for name, value in start.items()}
        results = run(model, {**batch, **start, **sums})
        for name in start:
            np.testing.assert_allclose(results[f"{name}_grad"], single[f"{name}_grad"] + 1.0, rtol=1e-6)
        pairs = {total: notes(model).parameters[name] for name, total in notes(model).gradient_sums.items()}
        assert overwritable(ir.from_proto(model).graph, pairs) == set(pairs)

    def test_running_statistics_go_in_and_out(self) -> None:
        model = training_model(onnx_grad.training_mode(CNN), "cross_entropy", target="labels")
        statistics = notes(model).statistics
        assert statistics["norm1.running_mean"] == "norm1.running_mean_updated"
        assert set(statistics) <= set(input_names(model))
        assert set(statistics.values()) <= set(output_names(model))
        assert "norm1.running_mean" not in notes(model).parameters

    def test_weights_of_the_loss_are_not_trained(self) -> None:
        def loss(op: Any, tensors: Any) -> Any:
            scale = op.constant(np.ones(3), ir.DataType.FLOAT)
            return op.ReduceMean(op.Mul(tensors["logits"], scale), keepdims=0)

        assert list(notes(training_model(classifier(), loss)).parameters) == ["w1", "b1", "w2", "b2"]

    def test_kinds_of_models(self, tmp_path: Path) -> None:
        path = tmp_path / "training.onnx"
        result = training_model(CNN, "cross_entropy", save_as=path)
        assert isinstance(result, onnx.ModelProto)
        assert notes(onnx.load(path)).parameters == notes(result).parameters
        as_ir = training_model(ir.load(CNN), "cross_entropy")
        assert isinstance(as_ir, ir.Model)
        with pytest.raises(onnx_grad.OutputError):
            training_model(CNN, "cross_entropy", save_as=tmp_path / "none" / "training.onnx")

    def test_old_models_are_lifted(self) -> None:
        model = training_model(MODELS / "digits_cnn_torchscript.onnx", "cross_entropy", target="labels")
        assert "conv1.weight_grad" in output_names(model)


def test_a_step_is_a_gradient_and_an_update() -> None:
    options: dict[str, Any] = {"target": "labels"}
    training = training_model(classifier(), "cross_entropy", gradient_norm=True, **options)
    update = optimizer_model(training, "adamw", clip_norm=0.1)
    whole = step_model(classifier(), "cross_entropy", "adamw", clip_norm=0.1, **options)
    batch, start = points(), weights(classifier())
    names = OptimizerNotes.of(ir.from_proto(update))
    state = {slot: np.zeros_like(start[name]) for slot, name in names.slot_of.items()}
    rest = {**state, "learning_rate": np.float32(0.01) * np.ones(()), "step": np.asarray(0)}
    rest["learning_rate"] = rest["learning_rate"].astype(np.float32)
    gradients = run(training, {**batch, **start})
    passed = {name: gradients[name] for name in (*names.gradients.values(), "gradient_norm")}
    separate = run(update, {**start, **passed, **rest})
    together = run(whole, {**batch, **start, **rest})
    np.testing.assert_array_equal(together["loss"], gradients["loss"])
    for name in (*names.parameters.values(), *names.slots.values(), "step_updated"):
        np.testing.assert_allclose(together[name], separate[name], rtol=1e-6, atol=1e-9)
    assert not any(name.endswith("_grad") for name in output_names(whole))


def test_an_evaluation_reads_what_a_training_updates() -> None:
    training = training_model(onnx_grad.training_mode(CNN), "cross_entropy", target="labels")
    model = evaluation_model(CNN, training, "cross_entropy", target="labels")
    held = {*notes(training).parameters, *notes(training).statistics}
    assert set(input_names(model)) == {"image", "labels", *held}
    assert output_names(model) == ["logits", "loss"]
    batch = dict(np.load(MODELS / "digits.npz"))
    values = {name: value for name, value in weights(onnx.load(CNN)).items() if name in held}
    results = run(model, {"image": batch["image"], "labels": batch["label"], **values})
    assert (results["logits"].argmax(1) == batch["label"]).all()


def test_models_of_other_makes_are_refused() -> None:
    with pytest.raises(onnx_grad.ModelError, match="training_model"):
        optimizer_model(classifier())


class TestInPlace:
    def overwritable(self, body: str) -> bool:
        model = ir.from_proto(parse(f"g (float[3] x, float[3] g) => (float[3] y, float[3] z) {{ {body} }}"))
        return overwritable(model.graph, {"x": "y"}) == {"x"}

    def test_readers_that_come_before(self) -> None:
        assert self.overwritable("a = Exp(x) y = Add(x, a) z = Neg(a)")
        assert self.overwritable("a = Exp(x) b = Neg(a) y = Sub(b, g) z = Neg(y)")

    def test_a_reader_that_may_come_after(self) -> None:
        assert not self.overwritable("y = Add(x, g) z = Neg(x)")

    def test_a_writer_that_is_not_element_by_element(self) -> None:
        assert not self.overwritable("y = CumSum(x, x) z = Neg(g)")
