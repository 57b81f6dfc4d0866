"""The networks that are measured compute the same in both forms, and the command runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.measuring import Spread
from benchmarks.memory import peak_megabytes
from benchmarks.networks import EXTRA, NETWORKS, Network
from benchmarks.sides import Task, ours, torch


@pytest.mark.parametrize("network", [*NETWORKS, *EXTRA], ids=lambda network: network.name)
@pytest.mark.parametrize("wrt", ["weights", "input"])
def test_gradients_are_those_of_pytorch(network: Network, wrt: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is the oracle")
    small = Network(network.name, network.title, (1, *network.shape[1:]), network.define)
    task = Task(small, wrt, threads=1)
    own, theirs = (
        np.concatenate([array.ravel() for array in side.results()]) for side in (ours(task), torch(task))
    )
    # A Relu near its kink may fall on either side of it.
    assert np.linalg.norm(own - theirs) < 5e-3 * np.linalg.norm(theirs)


def test_a_symbolic_batch_gives_the_same_gradients() -> None:
    network = next(network for network in NETWORKS if network.name == "cnn")
    fixed, dynamic = (ours(Task(network, "weights", 1, dynamic_batch=d)).results() for d in (False, True))
    for one, other in zip(fixed, dynamic, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from Linux's /proc")
def test_the_peak_of_a_step_is_measured_in_a_process_of_its_own() -> None:
    megabytes = peak_megabytes("mlp", "weights", "onnx_grad")
    assert megabytes is not None
    assert 1 < megabytes < 100


def test_the_command_prints_tables_and_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs it")
    monkeypatch.setattr("benchmarks.__main__.peak_megabytes", lambda network, wrt, side: len(wrt + side))
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    arguments = "--network mlp --threads 1 --rounds 2 --peer none --memory".split()
    result = CliRunner().invoke(app, [*arguments, "--json", str(figures), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert "Gradient of all weights, 1 thread" in result.output
    report = json.loads(figures.read_text())
    assert {m["side"] for m in report["measurements"]} == {"forward", "onnx_grad"}
    assert {m["wrt"] for m in report["measurements"]} == {"weights", "input"}
    assert all(m["megabytes"] == len(m["wrt"] + m["side"]) for m in report["measurements"])
    assert all(m["milliseconds"]["median"] > 0 for m in report["measurements"])
    assert report["transformations"][0]["added"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "value"), [("--network", "mnist"), ("--wrt", "labels"), ("--peer", "jax")]
)
def test_unknown_names_are_told(option: str, value: str) -> None:
    result = CliRunner().invoke(app, [option, value])
    assert result.exit_code == 2
    assert f"'{value}' is none of" in result.output


def test_a_spread_is_a_median_between_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(2.0, 3.0, 4.0)
