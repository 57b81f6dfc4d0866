"""The command `onnx-grad vmap`."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from models import FOLDER
from onnx_grad.cli import app
from tests.graphs import parse

MLP = str(FOLDER / "digits_mlp.onnx")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["vmap", *map(str, arguments)])


def test_writes_the_model_and_tells_the_shapes(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = command(MLP, out)
    assert result.exit_code == 0
    assert "[vmap, batch, 64]" in result.stdout
    assert len(onnx.load(out).graph.input[0].type.tensor_type.shape.dim) == 3


def test_json(tmp_path: Path) -> None:
    result = command(MLP, tmp_path / "out.onnx", "--in-axis", "pixels=1", "--out-axis", "logits=-1", "--json")
    summary = json.loads(result.stdout)
    assert summary["inputs"] == {"pixels": "[batch, vmap, 64]"}
    assert summary["outputs"] == {"logits": "[batch, 10, vmap]"}
    assert summary["example_by_example"] == {}


def test_tells_what_runs_example_by_example(tmp_path: Path) -> None:
    model = parse("g (float[2] x, float v) => (float[k] y) <int64[2] p = {1, 1}> { y = Pad(x, p, v) }")
    onnx.save(model, tmp_path / "in.onnx")
    result = command(tmp_path / "in.onnx", tmp_path / "out.onnx", "--axis-size", "3", "--json")
    summary = json.loads(result.stdout)
    assert summary["example_by_example"] == {"Pad": 1}
    assert summary["inputs"]["x"] == "[3, 2]"


@pytest.mark.parametrize("axes", ["pixels", "pixels=x", "=0"])
def test_an_axis_that_cannot_be_read(tmp_path: Path, axes: str) -> None:
    result = command(MLP, tmp_path / "out.onnx", "--in-axis", axes)
    assert result.exit_code == 2
    assert "NAME=AXIS" in result.stderr
    assert not (tmp_path / "out.onnx").exists()
