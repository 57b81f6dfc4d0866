"""The log of a training, as JSON lines, and its curves as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from onnx_grad.errors import InputError, OutputError, RuntimeUnavailableError
from onnx_grad.saving import check_target, write_whole


class Log:
    """Appends one JSON object a line to a file.

    Args:
        path: The file; lines of a training that is resumed stay, as far as its checkpoint reached.
        step: How many updates were made before. Lines of later ones are removed.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        check_target(path)
        kept = [line for line in _lines(path) if line.get("step", 0) <= step] if step else []
        text = "".join(json.dumps(line) + "\n" for line in kept).encode()
        write_whole(path, lambda file: file.write(text))
        self._path = path
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, event: Mapping[str, Any]) -> None:
        """Append a line."""
        try:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write '{self._path}': {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            # A kill can leave half a line at the end.
            break
    return lines


def plot_curves(log: str | Path, picture: str | Path) -> None:
    """Draw the loss of each update and what evaluations told, from a log, as a PNG.

    Raises:
        InputError: The log holds no steps.
        RuntimeUnavailableError: matplotlib is not installed.
        OutputError: The picture cannot be written.
    """
    check_target(picture)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeUnavailableError(
            "drawing curves needs matplotlib; install it with: pip install 'onnx-grad[plot]'"
        ) from error
    lines = _lines(Path(log))
    steps = [line for line in lines if line.get("event") == "step"]
    epochs = [line for line in lines if line.get("event") == "epoch"]
    if not steps:
        raise InputError(f"'{log}' holds no steps of a training")
    evaluated = [line for line in epochs if line.get("evaluation")]
    others = [name for name in (evaluated[-1]["evaluation"] if evaluated else {}) if name != "loss"]
    figure = Figure(figsize=(8, 4 + 2 * bool(others)), layout="constrained")
    axes = figure.subplots(1 + bool(others), 1, squeeze=False, sharex=True)[:, 0]
    axes[0].plot([s["step"] for s in steps], [s["loss"] for s in steps], color="0.7", label="batches")
    axes[0].plot([e["step"] for e in epochs], [e["loss"] for e in epochs], label="training")
    if evaluated:
        x = [e["step"] for e in evaluated]
        axes[0].plot(x, [e["evaluation"]["loss"] for e in evaluated], label="evaluation")
        for name in others:
            axes[1].plot(x, [e["evaluation"][name] for e in evaluated], label=name)
            axes[1].legend()
    axes[0].set_ylabel("loss")
    axes[0].legend()
    axes[-1].set_xlabel("updates")
    write_whole(picture, lambda file: figure.savefig(file, format="png", dpi=120))
