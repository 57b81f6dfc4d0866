"""The examples of docs/training.md run, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onnx_grad.cli import app
from tests.training.networks import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn ships the images of the examples")
    pytest.importorskip("matplotlib", reason="the examples draw curves")
    (tmp_path / "models").symlink_to(MODELS)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for language, code in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "onnx-grad"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
    assert names["history"][-1]["evaluation"]["accuracy"] > 0.97
    for name in ("tuned.onnx", "curves.png", "merged.onnx", "digits.onnx_adapter", "averaged.onnx"):
        assert Path(name).exists(), name
