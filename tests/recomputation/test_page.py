"""`docs/recomputation.md`: its code runs, and does what it says."""

from __future__ import annotations

from pathlib import Path

import onnx_grad
from tests.pages import run_commands, run_page


def test_code() -> None:
    names = run_page("recomputation.md").names
    plain, lean = (onnx_grad.peak_memory(names[name], sizes=names["sizes"]) for name in ("plain", "lean"))
    assert names["freed"].activations < lean.activations < plain.activations


def test_commands(tmp_path: Path) -> None:
    run_commands("recomputation.md", tmp_path)
    assert (tmp_path / "lean.onnx").exists()
