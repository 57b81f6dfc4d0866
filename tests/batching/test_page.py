"""The page docs/vmap.md: its code runs, and gives the shapes that it tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onnx_grad.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "vmap.md").read_text()


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    told = 0
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        *lines, last = block.strip().splitlines()
        exec("\n".join(lines), names)
        expression, _, comment = last.partition("  # ")
        shapes = eval(f"({comment},)")
        values = eval(f"({expression},)", names)
        assert (values if len(shapes) == len(values) else values[0]) == shapes
        told += 1
    assert told == 3


def test_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.strip().splitlines():
        arguments = line.replace("batched.onnx", str(tmp_path / "batched.onnx")).split()
        assert arguments[0] == "onnx-grad"
        result = CliRunner().invoke(app, arguments[1:])
        assert result.exit_code == 0, result.output
