"""Low-rank adapters: trained alone, exported merged or as an adapter of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad
from onnx_grad.training import LoRA, Trainer, lora_model
from onnx_grad.training.checkpoints import newest_checkpoint
from tests.graphs import input_names, parse, run
from tests.training.networks import MODELS, classifier, points
from tests.training.test_trainer import trainer

CNN = MODELS / "digits_cnn.onnx"


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def digits() -> dict[str, np.ndarray]:
    images = np.load(MODELS / "digits.npz")
    return {"image": images["image"], "labels": images["label"]}


def test_only_adapters_are_trained_and_checkpointed(tmp_path: Path) -> None:
    t = trainer(lora=LoRA(2), learning_rate=0.05)
    names = {f"{weight}.lora_{part}" for weight in ("w1", "w2") for part in "AB"}
    assert set(t.parameters) == names
    history = t.fit(points(), 10, checkpoint=tmp_path)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert {name.split("/")[1] for name in found.tensors} == names


def test_at_first_they_change_nothing() -> None:
    assert trainer(lora=LoRA(2)).evaluate(points()) == pytest.approx(trainer().evaluate(points()), rel=1e-6)


@pytest.mark.parametrize("model", ["classifier", "cnn", "transposed"])
def test_the_merged_model_gives_the_same(tmp_path: Path, model: str) -> None:
    options: dict[str, Any] = {"lora": LoRA(2, alpha=8.0), "target": "labels", "learning_rate": 0.05}
    path = tmp_path / "model.onnx"
    batch = digits() if model == "cnn" else points()
    if model == "cnn":
        path.write_bytes(CNN.read_bytes())
    elif model == "classifier":
        onnx.save(classifier(), path)
    else:
        body = """g (float[batch,4] x) => (float[batch,3] logits)
        <float[3,4] w = {1,2,3,4,5,6,7,8,9,8,7,6}, float[3,3] v = {1,2,3,4,5,6,7,8,9}> {
            t = Transpose <perm=[1,0]> (w)
            h = MatMul (x, t)
            logits = Gemm <alpha=0.5, transB=1> (h, v)
        }"""
        onnx.save(parse(body), path)
    t = Trainer(path, "cross_entropy", training_mode=False, **options)
    for _ in range(5):
        t.step(batch)
    t.export(tmp_path / "tuned.onnx")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    merged = Trainer(tmp_path / "tuned.onnx", "cross_entropy", training_mode=False, target="labels")
    assert merged.evaluate(batch)["loss"] == pytest.approx(t.evaluate(batch)["loss"], rel=1e-4)
    before, after = weights(path), weights(tmp_path / "tuned.onnx")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert onnx.load(path).graph.node == onnx.load(tmp_path / "tuned.onnx").graph.node

    t.export_adapter(tmp_path / "tuned.onnx_adapter")
    lora_model(path, LoRA(2, alpha=8.0), save_as=tmp_path / "with_inputs.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "with_inputs.onnx")
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(tmp_path / "tuned.onnx_adapter"))
    options_of_run = onnxruntime.RunOptions()
    options_of_run.add_active_adapter(adapter)
    expected = run(onnx.load(tmp_path / "tuned.onnx"), inputs)["logits"]
    (adapted,) = session.run(["logits"], inputs, options_of_run)
    np.testing.assert_allclose(adapted, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    (plain,) = session.run(["logits"], inputs)
    np.testing.assert_allclose(plain, run(onnx.load(path), inputs)["logits"], rtol=1e-5, atol=1e-5)


def test_chosen_weights_and_others_beside_them() -> None:
    t = trainer(lora=LoRA(2, weights="w1"), parameters="b2")
    assert set(t.parameters) == {"w1.lora_A", "w1.lora_B", "b2"}


def test_adapter_inputs_have_zeros_as_default() -> None:
    model = lora_model(classifier(), LoRA(3))
    assert isinstance(model, onnx.ModelProto)
    assert input_names(model) == ["x", "w1.lora_A", "w1.lora_B", "w2.lora_A", "w2.lora_B"]


def test_a_model_with_adapter_inputs_is_trained_as_it_is(tmp_path: Path) -> None:
    model = lora_model(classifier(), LoRA(2))
    t = trainer(model, parameters="*.lora_*")
    t.reinitialize()
    assert t.inputs == ("x", "labels")
    assert len(t.parameters) == 4
    history = t.fit(points(), 10, evaluation=points())
    assert history[-1]["loss"] < history[0]["loss"]
    t.export_adapter(tmp_path / "tuned.onnx_adapter")
    adapter = onnxruntime.AdapterFormat.read_adapter(str(tmp_path / "tuned.onnx_adapter"))
    np.testing.assert_array_equal(adapter.get_parameters()["w1.lora_A"].numpy(), t.weights()["w1.lora_A"])


def test_bad_requests() -> None:
    with pytest.raises(onnx_grad.InputError, match="rank"):
        LoRA(0)
    with pytest.raises(onnx_grad.UnknownNameError):
        trainer(lora=LoRA(2, weights="w9"))
    with pytest.raises(onnx_grad.NotDifferentiableError, match="no weight"):
        trainer(parse("g (float[n,3] x) => (float[n,3] y) <float[3] w={1,2,3}> {y=Mul(x,w)}"), lora=LoRA(2))
