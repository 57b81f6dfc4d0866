"""Kills a training at random moments, resumes it, compares the end: ``python -m tests.training.kills``.

Every checkpoint, export and update can be hit: a checkpoint is written after every other update.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from tests.training.networks import classifier, points

KILLS = 50


def command(folder: Path, out: Path, checkpoints: Path) -> list[str]:
    return [
        *(sys.executable, "-c", "from onnx_grad.cli import main; main()"),
        *("train", str(folder / "model.onnx"), "--data", str(folder / "train.npz")),
        *("--loss", "cross_entropy", "--labels", "labels", "--epochs", "8", "--batch-size", "8"),
        *("--schedule", "cosine", "--average", "0.9", "--clip-norm", "1", "--reinitialize"),
        *("--checkpoint", str(checkpoints), "--checkpoint-every", "2", "--resume", "--out", str(out)),
    ]


def survive(kills: int, folder: Path, seed: int = 0, report: bool = False) -> int:
    """Kill trainings `kills` times in all; returns how many of them came to their end, the same each time."""
    onnx.save(classifier(hidden=64), folder / "model.onnx")
    np.savez(folder / "train.npz", **points(240))
    whole, out, checkpoints = folder / "whole.onnx", folder / "out.onnx", folder / "checkpoints"
    started = time.perf_counter()
    subprocess.run(command(folder, whole, folder / "of_whole"), check=True, capture_output=True)
    duration = time.perf_counter() - started
    expected = whole.read_bytes()
    moments, killed, finished = random.Random(seed), 0, 0
    while killed < kills or checkpoints.exists():
        is_fresh, started = not checkpoints.exists(), time.perf_counter()
        process = subprocess.Popen(
            command(folder, out, checkpoints), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        limit = moments.uniform(0.5, 1.0) * duration if killed < kills else None
        try:
            _, error = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            continue
        if process.returncode != 0:
            raise AssertionError(f"a resumed training failed: {error.decode()}")
        if out.read_bytes() != expected:
            raise AssertionError("a resumed training came to other weights")
        finished += 1
        if is_fresh:
            # The machine may have been busier when the first was timed.
            duration = min(duration, time.perf_counter() - started)
        shutil.rmtree(checkpoints)
        out.unlink()
        if report:
            print(f"{killed} kills, {finished} trainings with the same weights", flush=True)
    return finished


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
        ended = survive(count, Path(temporary), seed=int(time.time()), report=True)
        print(f"{count} kills; {ended} trainings came to their end, byte for byte the same")
