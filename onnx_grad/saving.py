"""Writing a result: all of it or nothing, weights shared with the original's external data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO

import onnx_ir as ir

from onnx_grad.errors import OutputError

# Protobuf cannot hold more; weights go to a file beside the model well before that.
_LARGEST_EMBEDDED_BYTES = 1_500_000_000


def check_target(path: str | os.PathLike[str]) -> None:
    """See before any work that `path` can be written.

    Raises:
        OutputError: Its folder does not exist, or it is a folder itself.
    """
    target = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write '{path}': the folder '{folder}' does not exist; create it first")
    if os.path.isdir(target):
        raise OutputError(f"cannot write '{path}': it is a folder; give the name of a file")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write '{path}': no permission to write in '{folder}'")


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write `model` to `path`; nothing is left behind when that fails.

    External tensors whose data lies in the same folder go on pointing there. Where it lies elsewhere, and
    where the weights are too large to be embedded, they are written to `<path>.data`.

    Raises:
        OutputError: The file cannot be written.
    """
    check_target(path)
    target = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(target)
    tensors = list(model.graph.initializers.tensors())
    external = [t for t in tensors if isinstance(t, ir.ExternalTensor)]
    embedded = sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))
    shared = all(not t.base_dir or os.path.realpath(t.base_dir) == os.path.realpath(folder) for t in external)
    try:
        if shared and embedded <= _LARGEST_EMBEDDED_BYTES:
            content = ir.to_proto(model).SerializeToString()
            _write_whole(target, lambda file: file.write(content))
        else:
            _save_with_data(model, folder, name)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill the file at `path`: afterwards it is the old file or the new one, never half.

    Raises:
        OutputError: The file cannot be written.
    """
    check_target(path)
    target = os.path.abspath(os.fspath(path))
    try:
        _write_whole(target, write)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error


def _write_whole(target: str, write: Callable[[BinaryIO], object]) -> None:
    """To a new file, flushed, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".onnx_grad-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _save_with_data(model: ir.Model, folder: str, name: str) -> None:
    """The model and its weights as two files, moved into place together at the end."""
    data = name + ".data"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx_grad-") as temporary:
        ir.save(model, os.path.join(temporary, name), external_data=data)
        if os.path.exists(os.path.join(temporary, data)):
            os.replace(os.path.join(temporary, data), os.path.join(folder, data))
        os.replace(os.path.join(temporary, name), os.path.join(folder, name))


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
