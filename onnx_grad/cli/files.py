"""The files that commands read and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from rich.markup import escape

from onnx_grad import array_files
from onnx_grad.array_files import Arrays
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.cli.printing import stderr
from onnx_grad.errors import OutputError


def check_other_file(model: Path, out: Path) -> None:
    """See that `out` is not the `model` itself, which would be lost."""
    if out.exists() and out.samefile(model):
        raise OutputError(f"'{out}' is the model itself and would be lost; give another name")


def read_arrays(path: Path, names: list[str]) -> Arrays:
    """The arrays of an .npz file that are named after the graph's inputs."""
    used, ignored = array_files.read_arrays(path, names)
    if ignored:
        stderr.print(f"ignored, no input of that name: {escape(', '.join(ignored))}", style="dim")
    return used


def is_noted(model: onnx.ModelProto, key: str) -> bool:
    """Whether a transform noted something in the metadata of its result."""
    return any(entry.key == METADATA_PREFIX + key for entry in model.metadata_props)


def noted(model: onnx.ModelProto, key: str) -> dict[str, Any]:
    """What a transform noted in the metadata of its result."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    notes: dict[str, Any] = json.loads(metadata[METADATA_PREFIX + key])
    return notes
