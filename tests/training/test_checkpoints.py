"""Checkpoints: bit for bit on, damaged and foreign files refused, and nothing lost when the disk is full."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_grad
from onnx_grad.training import EarlyStopping, Trainer
from onnx_grad.training.checkpoints import newest_checkpoint, save_checkpoint
from tests.graphs import parse
from tests.training.kills import survive
from tests.training.networks import points
from tests.training.test_trainer import DROPOUT, assert_equal, trainer

OPTIONS: dict[str, Any] = {
    "schedule": "cosine",
    "accumulation": 2,
    "average": 0.9,
    "clip_norm": 1.0,
    "batch_size": 8,
}


class InterruptionError(Exception):
    """What stops a training in the midst of an epoch."""


def interrupted(t: Trainer, folder: Path, log: Path, after: int) -> None:
    """Train until `after` updates, and lose what came after the last checkpoint."""
    step, made = t.step, 0

    def counting(*batches: Any, **options: Any) -> Any:
        nonlocal made
        if made == after:
            raise InterruptionError
        made += 1
        return step(*batches, **options)

    t.step = counting  # type: ignore[method-assign]
    with pytest.raises(InterruptionError):
        fit(t, folder, log)


def fit(t: Trainer, folder: Path, log: Path) -> list[dict[str, Any]]:
    stopping = EarlyStopping(patience=50)
    return t.fit(
        points(60),
        3,
        evaluation=points(seed=1),
        early_stopping=stopping,
        checkpoint=folder,
        checkpoint_every=2,
        resume=True,
        log=log,
    )


def test_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(parse(DROPOUT), **OPTIONS)
    history = fit(whole, tmp_path / "whole", tmp_path / "whole.jsonl")
    folder, log = tmp_path / "parts", tmp_path / "parts.jsonl"
    for after in (3, 1, 4):
        interrupted(trainer(parse(DROPOUT), **OPTIONS), folder, log, after)
    last = trainer(parse(DROPOUT), **OPTIONS)
    assert fit(last, folder, log) == history
    assert_equal(last.weights(), whole.weights())
    assert_equal(last.weights(average=True), whole.weights(average=True))
    assert timeless(tmp_path / "whole.jsonl") == timeless(log)


def timeless(log: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    trainer().fit(points(64), 5, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:09d}.{kind}" for step in (16, 20) for kind in ("json", "safetensors")
    ]


def test_resuming_without_a_checkpoint_starts_afresh(tmp_path: Path) -> None:
    t = trainer()
    assert len(t.fit(points(), 1, checkpoint=tmp_path / "none", resume=True)) == 1


class TestRefused:
    def start(self, folder: Path) -> Path:
        trainer().fit(points(32), 1, checkpoint=folder)
        return folder / "step-000000002.json"

    def refused(self, folder: Path, message: str, **options: Any) -> None:
        t = trainer(**options)
        before = t.weights()
        with pytest.raises(onnx_grad.CheckpointError, match=message):
            t.load_checkpoint(folder)
        assert_equal(before, t.weights())

    def test_truncated_tensors(self, tmp_path: Path) -> None:
        data = self.start(tmp_path).with_suffix(".safetensors")
        data.write_bytes(data.read_bytes()[:-4])
        self.refused(tmp_path, "damaged: .* bytes of")

    def test_changed_tensors(self, tmp_path: Path) -> None:
        data = self.start(tmp_path).with_suffix(".safetensors")
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        data.write_bytes(content)
        self.refused(tmp_path, "damaged: .* does not have the content")

    def test_missing_tensors(self, tmp_path: Path) -> None:
        self.start(tmp_path).with_suffix(".safetensors").unlink()
        self.refused(tmp_path, "is missing")

    def test_half_a_file(self, tmp_path: Path) -> None:
        path = self.start(tmp_path)
        path.write_bytes(path.read_bytes()[:40])
        self.refused(tmp_path, "no JSON")

    def test_another_format(self, tmp_path: Path) -> None:
        self.start(tmp_path).write_text('{"format": "something else"}')
        self.refused(tmp_path, "not a checkpoint of this version")

    def test_another_training(self, tmp_path: Path) -> None:
        self.start(tmp_path)
        for options, message in (
            ({"optimizer": "sgd"}, "its optimizer is AdamW"),
            ({"batch_size": 4}, "batch size is 16, here it is 4"),
            ({"parameters": "w*"}, "parameters"),
            ({"seed": 3}, "seed"),
        ):
            self.refused(tmp_path, message, **options)

    def test_options_without_a_folder(self) -> None:
        with pytest.raises(onnx_grad.InputError, match="checkpoint="):
            trainer().fit(points(), 1, resume=True)


FULL_DISK = """
import resource, signal, sys
from onnx_grad import OutputError
from tests.training.kills import survive
from tests.training.networks import points
from tests.training.test_trainer import trainer
t = trainer()
t.fit(points(32), 1, checkpoint=sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
try:
    t.save_checkpoint(sys.argv[1]) if t.step(points(32)) else None
except OutputError as error:
    print(error)
try:
    t.export(sys.argv[2])
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of a file")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "tuned.onnx"
    out.write_bytes(b"before")
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", FULL_DISK, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    first, second = done.stdout.splitlines()
    assert "cannot write" in first
    assert "cannot write" in second
    assert out.read_bytes() == b"before"
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    found = newest_checkpoint(folder)
    assert found is not None
    assert found.state["progress"]["step"] == 2


def test_a_kill_between_the_two_files_leaves_the_one_before(tmp_path: Path) -> None:
    arrays = {"a": np.ones(3, np.float32)}
    save_checkpoint(tmp_path, 1, {"n": 1}, arrays)
    save_checkpoint(tmp_path, 2, {"n": 2}, arrays)
    (tmp_path / "step-000000002.json").unlink()
    (tmp_path / ".onnx_grad-left").write_bytes(b"half")
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state == {"n": 1}
    save_checkpoint(tmp_path, 3, {"n": 3}, arrays)
    assert not list(tmp_path.glob(".onnx_grad-*"))
    assert not (tmp_path / "step-000000002.safetensors").exists()


@pytest.mark.slow
def test_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    """One kill; `python -m tests.training.kills` makes fifty."""
    assert survive(1, tmp_path) >= 1
