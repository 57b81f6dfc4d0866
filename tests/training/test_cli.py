"""The commands `train`, `artifacts` and `loop`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from onnx_grad.cli import app
from tests.training.networks import MODELS, classifier, points

CNN = MODELS / "digits_cnn.onnx"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "model.onnx")
    np.savez(tmp_path / "train.npz", **points(96))
    np.savez(tmp_path / "test.npz", **points(32, seed=1))
    return tmp_path


def train(folder: Path, *options: object) -> Result:
    base = ["--data", folder / "train.npz", "--labels", "labels", "--out", folder / "tuned.onnx"]
    return command("train", folder / "model.onnx", *base, *options)


def test_train(folder: Path) -> None:
    options = ["--loss", "cross_entropy", "--eval", folder / "test.npz", "--lr", 0.02, "--seed", 3]
    more = ["--epochs", 4, "--checkpoint", folder / "checkpoints", "--resume", "--log", folder / "log.jsonl"]
    result = train(folder, *options, *more, "--plot", folder / "curves.png")
    assert result.exit_code == 0, result.output
    assert "eval accuracy" in result.stdout
    assert "12 updates" in result.stdout
    assert (folder / "curves.png").exists()
    first = (folder / "tuned.onnx").read_bytes()
    again = train(folder, *options, *more, "--json")
    assert json.loads(again.stdout)["updates"] == 12
    assert (folder / "tuned.onnx").read_bytes() == first


def test_digits_from_random_weights(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn ships the images")
    from models import digits

    for name, part in zip(("train", "test"), digits.split(), strict=True):
        np.savez(tmp_path / f"{name}.npz", image=part.image, labels=part.label)
    result = command(
        *("train", CNN, "--data", tmp_path / "train.npz", "--eval", tmp_path / "test.npz"),
        *("--loss", "cross_entropy", "--labels", "labels", "--lr", 3e-3, "--epochs", 3),
        *("--reinitialize", "--out", tmp_path / "tuned.onnx", "--json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["epochs"][-1]["evaluation"]["accuracy"] >= 0.97


def test_options(folder: Path) -> None:
    result = train(
        folder,
        *(
            "--loss",
            "cross_entropy",
            "--loss-option",
            "label_smoothing=0.1",
            "--loss-option",
            "ignore_index=2",
        ),
        *(
            "--optimizer",
            "adam",
            "--optimizer-option",
            "betas=[0.8,0.9]",
            "--schedule",
            "linear",
            "--warmup",
            2,
        ),
        *("--accumulation", 2, "--frozen", "*1", "--clip-norm", 1, "--average", 0.5, "--no-training-mode"),
        *("--epochs", 2, "--eval", folder / "test.npz", "--metric", "accuracy", "--patience", 5),
    )
    assert result.exit_code == 0, result.output
    before, after = (
        {t.name: t.raw_data for t in onnx.load(folder / name).graph.initializer}
        for name in ("model.onnx", "tuned.onnx")
    )
    assert before["w1"] == after["w1"]
    assert before["w2"] != after["w2"]


def test_adapters_in_half_precision(folder: Path) -> None:
    options = ["--loss", "cross_entropy", "--epochs", 1, "--precision", "float16"]
    adapters = [
        "--lora",
        2,
        "--lora-alpha",
        4,
        "--lora-weights",
        "w1",
        "--adapter",
        folder / "a.onnx_adapter",
    ]
    result = train(folder, *options, *adapters)
    assert result.exit_code == 0, result.output
    assert (folder / "a.onnx_adapter").exists()


def test_a_learning_rate_in_steps(folder: Path) -> None:
    log = folder / "log.jsonl"
    options = ["--loss", "cross_entropy", "--epochs", 2, "--lr", 1e-3, "--log", log]
    result = train(folder, *options, "--schedule", "step", "--decay-every", 4)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["event"] == "step"]
    np.testing.assert_allclose(rates, [1e-3] * 4 + [1e-4] * 2)


def test_bad_requests(folder: Path) -> None:
    for options, message in (
        (["--loss", "cross_entropi"], "cross_entropy"),
        (["--loss", "cross_entropy", "--optimizer", "adamv"], "adamw"),
        (["--loss", "cross_entropy", "--optimizer-option", "lambda=1"], "weight_decay"),
        (["--loss", "cross_entropy", "--loss-option", "smoothing"], "label_smoothing"),
        (["--loss", "cross_entropy", "--schedule", "cosin"], "cosine"),
        (["--loss", "cross_entropy", "--schedule", "step"], "--decay-every"),
        (["--loss", "cross_entropy", "--plot", folder / "c.png"], "--log"),
        (["--loss", "cross_entropy", "--patience", 3], "--eval"),
        (["--loss", "cross_entropy", "--resume"], "checkpoint"),
        (["--loss", "cross_entropy", "--frozen", "nothing*"], "nothing*"),
        (["--loss", "cross_entropy", "--providers", "NoSuchProvider"], "NoSuchProvider"),
        (["--loss", "mean_squared_error"], "labels"),
        (["--loss", "cross_entropy", "--precision", "float8"], "bfloat16"),
        (["--loss", "cross_entropy", "--lora-alpha", 2], "--lora RANK"),
    ):
        result = train(folder, *options)
        assert result.exit_code == 2, options
        assert message in result.stderr.replace("\n", " "), options
    assert not (folder / "tuned.onnx").exists()


def test_artifacts_and_loop(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    result = command("artifacts", CNN, "--out", folder, "--loss", "cross_entropy", "--labels", "labels")
    assert result.exit_code == 0, result.output
    assert "step.onnx" in result.stdout
    printed = command("loop", folder)
    assert printed.exit_code == 0
    assert f"FOLDER = {str(folder)!r}" in printed.stdout
    compile(printed.stdout, "loop.py", "exec")
    assert command("loop", tmp_path).exit_code == 2
