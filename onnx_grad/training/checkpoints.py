"""Checkpoints: tensors as safetensors, the rest as JSON, each file whole or not there.

The tensors are written first; the JSON file names them with their digest, and makes them the checkpoint. So a
kill at any moment leaves the checkpoint before, or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy

from onnx_grad.errors import CheckpointError, OutputError
from onnx_grad.saving import umask

Array: TypeAlias = np.ndarray[Any, Any]
State: TypeAlias = dict[str, Any]

FORMAT = "onnx_grad checkpoint 1"
_TEMPORARY = ".onnx_grad-"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: Its JSON file.
        state: Counters and settings.
        tensors: Parameters and state of the optimizer by name.
    """

    path: Path
    state: State
    tensors: Mapping[str, Array]


def save_checkpoint(folder: Path, step: int, state: State, tensors: Mapping[str, Array]) -> Path:
    """Write a checkpoint of `step` updates, and remove all but the two newest.

    Raises:
        OutputError: It cannot be written; earlier checkpoints are as they were.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_TEMPORARY}*"):
            stale.unlink()
    except OSError as error:
        raise OutputError(f"cannot write checkpoints into '{folder}': {error.strerror or error}") from error
    data = folder / f"step-{step:09d}.safetensors"
    path = data.with_suffix(".json")
    write_tensors(data, tensors)
    content = {
        "format": FORMAT,
        "tensors": data.name,
        "bytes": data.stat().st_size,
        "sha256": _digest(data),
        "state": state,
    }
    text = json.dumps(content, indent=1).encode()
    write_new(path, lambda temporary: temporary.write_bytes(text))
    _remove_old(folder)
    return path


def write_tensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    given = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    notes = dict(metadata) if metadata else None
    write_new(path, lambda temporary: safetensors.numpy.save_file(given, temporary, notes))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder`; `None` where there is none.

    Raises:
        CheckpointError: It is damaged, or not one of onnx_grad's.
    """
    found = sorted(folder.glob("step-*.json")) if folder.is_dir() else []
    return read_checkpoint(found[-1]) if found else None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint whose JSON file is `path`.

    Raises:
        CheckpointError: It is damaged, or not one of onnx_grad's.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint '{path}': {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint '{path}' is damaged: it is no JSON ({error}); {_ADVICE}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is not a checkpoint of this version of onnx_grad ('{FORMAT}')")
    data = path.parent / str(content.get("tensors"))
    if not data.is_file():
        raise CheckpointError(f"the checkpoint '{path}' is damaged: '{data.name}' is missing; {_ADVICE}")
    size = data.stat().st_size
    if size != content.get("bytes"):
        raise CheckpointError(
            f"the checkpoint '{path}' is damaged: '{data.name}' has {size} bytes of {content.get('bytes')}; "
            f"{_ADVICE}"
        )
    if _digest(data) != content.get("sha256"):
        raise CheckpointError(
            f"the checkpoint '{path}' is damaged: '{data.name}' does not have the content that was written; "
            f"{_ADVICE}"
        )
    return Checkpoint(path, content["state"], StoredTensors(data))


_ADVICE = "remove it to go on from the checkpoint before, or to start afresh"


class StoredTensors(Mapping[str, Array]):
    """The tensors of a safetensors file by name, each read when it is asked for.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is none, or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = _opened(path)
            self._names: list[str] = list(self._file.keys())
        except OSError as error:
            raise CheckpointError(f"cannot read '{path}': {error.strerror or error}") from error
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"'{path}' is not a safetensors file, or damaged: {error}") from error

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return np.asarray(self._file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _opened(path: Path) -> Any:
    return safetensors.safe_open(path, framework="numpy")


def write_new(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file, which is flushed and takes the place of `path`, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~umask())
        _flush(temporary)
        temporary.replace(path)
        if os.name == "posix":
            _flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write '{path}': {reason}; what was there before is still there") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_old(folder: Path) -> None:
    for path in sorted(folder.glob("step-*.json"))[:-_KEPT]:
        path.unlink()
    named = {path.stem for path in folder.glob("step-*.json")}
    for data in folder.glob("step-*.safetensors"):
        if data.stem not in named:
            data.unlink()
