"""Named arrays in .npz files, as the command reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from onnx_grad.errors import InputError
from onnx_grad.saving import write_whole

Arrays = dict[str, np.ndarray[Any, Any]]


def read_arrays(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    """The arrays of an .npz file that are among `names`, and the names of the others.

    Raises:
        InputError: The file cannot be read, or has no such array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"'{path}' holds a single array; write named ones with numpy.savez")
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, BadZipFile) as error:
        raise InputError(f"'{path}' is not an .npz file of plain arrays: {error}") from error
    used = {name: array for name, array in arrays.items() if name in names}
    if not used:
        raise InputError(
            f"'{path}' holds {', '.join(map(repr, arrays)) or 'no arrays'}, and the model's inputs are "
            f"{', '.join(map(repr, names))}; name the arrays after the inputs"
        )
    return used, [name for name in arrays if name not in used]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """All arrays into one .npz file, whole or not at all."""
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
