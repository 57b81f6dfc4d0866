"""A training loop as a Python program that needs onnxruntime and numpy, and nothing of onnx_grad."""

from __future__ import annotations

from pathlib import Path

from onnx_grad.training.artifacts import Artifacts

_PROGRAM = Path(__file__).with_name("standalone_loop.py")
_FOLDER = 'FOLDER = "artifacts"'


def loop_program(artifacts: Artifacts) -> str:
    """The program that trains with a folder of artifacts; its text can be changed at will."""
    return _PROGRAM.read_text(encoding="utf-8").replace(_FOLDER, f"FOLDER = {str(artifacts.folder)!r}")
