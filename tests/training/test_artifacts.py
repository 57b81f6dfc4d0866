"""Artifacts: a folder that a loop with onnxruntime and numpy alone can train with."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy

import onnx_grad
from onnx_grad.training import Trainer, loop_program, read_artifacts, with_weights, write_artifacts
from onnx_grad.training.initialization import initial_weights
from tests.graphs import parse
from tests.training.networks import MODELS, classifier, points

CNN = MODELS / "digits_cnn.onnx"


def test_the_printed_loop_trains_like_the_trainer(tmp_path: Path) -> None:
    folder, model, data = tmp_path / "artifacts", tmp_path / "model.onnx", tmp_path / "train.npz"
    onnx.save(classifier(), model)
    np.savez(data, **points(60))
    artifacts = write_artifacts(folder, model, "cross_entropy", target="labels", reinitialize=0)
    program = tmp_path / "loop.py"
    program.write_text(loop_program(artifacts))
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(ast.parse(program.read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported == {"argparse", "json", "numpy", "onnxruntime", "pathlib"}
    trained = tmp_path / "trained.safetensors"
    options = ["--data", str(data), "--eval", str(data), "--out", str(trained), "--epochs", "3"]
    done = subprocess.run(
        [sys.executable, str(program), *options], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    trainer = Trainer(model, "cross_entropy", target="labels")
    trainer.reinitialize()
    history = trainer.fit(data, 3, evaluation=data, metrics=["accuracy"])
    last = history[-1]["evaluation"]
    assert f"evaluation loss {last['loss']:.4f}, accuracy {last['accuracy']:.2%}" in lines[-1]
    for name, value in safetensors.numpy.load_file(trained).items():
        np.testing.assert_allclose(value, trainer.weights()[name], rtol=1e-3, atol=1e-5)
    with_weights(model, trained, tmp_path / "tuned.onnx")
    tuned = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "tuned.onnx").graph.initializer
    }
    np.testing.assert_array_equal(tuned["w1"], safetensors.numpy.load_file(trained)["w1"])


def test_the_folder_says_what_is_what(tmp_path: Path) -> None:
    write_artifacts(tmp_path, CNN, "cross_entropy", "adamw", target="labels", clip_norm=1.0, average=0.9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "artifacts.json",
        "evaluation.onnx",
        "optimizer.onnx",
        "parameters.safetensors",
        "step.onnx",
        "training.onnx",
    ]
    about = json.loads((tmp_path / "artifacts.json").read_text())
    assert about["batch"]["labels"] == {"type": "int64", "shape": ["batch"]}
    assert about["updates"]["conv1.weight"] == "conv1.weight_updated"
    assert about["state"]["conv1.weight_mean"] == {"parameter": "conv1.weight", "start": 0.0}
    assert about["state"]["conv1.weight_average"]["start"] == "parameter"
    assert about["statistics"]["norm1.running_mean"] == "norm1.running_mean_updated"
    step = onnx.load(tmp_path / "step.onnx")
    inputs = {value.name for value in step.graph.input}
    assert inputs == {*about["batch"], *about["updates"], *about["statistics"], about["learning_rate"]}
    outputs = {value.name for value in step.graph.output}
    assert {*about["updates"].values(), *about["statistics"].values(), about["loss"]} <= outputs
    held = safetensors.numpy.load_file(tmp_path / "parameters.safetensors")
    assert set(held) == {*about["parameters"], *about["statistics"]}
    assert read_artifacts(tmp_path).description == about


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(onnx_grad.InputError, match="onnx-grad artifacts"):
        read_artifacts(tmp_path)
    (tmp_path / "artifacts.json").write_text("{")
    with pytest.raises(onnx_grad.InputError, match="no JSON"):
        read_artifacts(tmp_path)
    (tmp_path / "artifacts.json").write_text("{}")
    with pytest.raises(onnx_grad.InputError, match="description of artifacts"):
        read_artifacts(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(onnx_grad.OutputError):
        write_artifacts(tmp_path / "file", classifier(), "cross_entropy")


def test_fresh_weights_are_those_of_layers() -> None:
    model = onnx_grad.runtime.read_model(CNN)
    names = list(model.graph.initializers)
    weights = initial_weights(model.graph, [n for n in names if "." in n], seed=0)
    assert np.abs(weights["conv2.weight"]).max() <= 1 / np.sqrt(16 * 9)
    assert np.abs(weights["conv2.weight"]).max() > 0.9 / np.sqrt(16 * 9)
    assert np.abs(weights["readout.weight"]).max() <= 1 / np.sqrt(128)
    for name, number in (
        ("conv1.bias", 0),
        ("norm1.weight", 1),
        ("norm1.bias", 0),
        ("norm1.running_mean", 0),
        ("norm1.running_var", 1),
    ):
        assert (weights[name] == number).all(), name
    again = initial_weights(model.graph, ["conv1.weight"], seed=0)
    other = initial_weights(model.graph, ["conv1.weight"], seed=1)
    assert not np.array_equal(again["conv1.weight"], other["conv1.weight"])
    with pytest.raises(onnx_grad.UnknownNameError):
        initial_weights(model.graph, ["conv1.weights"], seed=0)


def test_fan_in_through_a_transposition() -> None:
    model = onnx_grad.runtime.read_model(
        parse(
            """g (float[n,4] x) => (float[n,100] y) <float[100,4] w> {
                t = Transpose <perm=[1,0]> (w)
                y = MatMul (x, t)
            }""".replace("<float[100,4] w>", "<float[100,4] w = {" + ",".join(["0"] * 400) + "}>")
        )
    )
    (weights,) = initial_weights(model.graph, ["w"], seed=0).values()
    assert 0.45 < np.abs(weights).max() <= 0.5
