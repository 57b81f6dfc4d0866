"""A model file with other weights, and nothing else changed: not an opset, a name or a place in a file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes  # noqa: F401  (numpy learns of bfloat16)
import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.errors import InputError, ModelError, OutputError
from onnx_grad.prepare import Model
from onnx_grad.prepare.load import parse
from onnx_grad.saving import check_target, umask, write_whole
from onnx_grad.training.checkpoints import StoredTensors

Array: TypeAlias = np.ndarray[Any, Any]
PathLike: TypeAlias = "str | os.PathLike[str]"


def with_weights(model: Model, weights: Mapping[str, Array] | PathLike, save_as: PathLike) -> None:
    """Write `model` with the tensors `weights` in the place of its initializers of these names.

    The file is that of `model` but for their content. Where they lie in external data, so do the new ones, at
    the same offsets, in a file of the same name; in the folder of `model`, where that name is taken, in
    `<save_as>.data`.

    Args:
        model: A path, an `onnx.ModelProto` or an `ir.Model`.
        weights: The new contents by name, or the path of a safetensors file with them; they are
            converted to the type that the model holds.
        save_as: Where to write the result.

    Raises:
        InputError: A tensor is none of the model, or has another shape.
        OutputError: The file cannot be written.
    """
    check_target(save_as)
    if not isinstance(weights, Mapping):
        weights = StoredTensors(Path(weights))
    target = Path(os.path.abspath(os.fspath(save_as)))
    proto, folder = _proto(model)
    _make_dense(proto.graph, weights)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    external: dict[str, list[tuple[onnx.TensorProto, Array]]] = {}
    for name, array in weights.items():
        if name not in tensors:
            raise InputError(f"the model has no initializer '{name}' that could be given new content")
        tensor = tensors[name]
        if tuple(tensor.dims) != array.shape:
            raise InputError(f"'{name}' has shape {list(tensor.dims)} in the model, not {list(array.shape)}")
        dtype = ir.DataType(tensor.data_type).numpy()
        content = np.ascontiguousarray(array.astype(dtype, copy=False))
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external.setdefault(_entry(tensor, "location"), []).append((tensor, content))
        else:
            _fill(tensor, content)
    locations = {
        _entry(t, "location") for t in tensors.values() if t.data_location == onnx.TensorProto.EXTERNAL
    }
    if folder is None and locations:
        raise ModelError("the external data of a ModelProto has no folder; give the path of the model")
    if folder is not None:
        _write_external(proto, folder, target, sorted(locations), external)
    content_bytes = proto.SerializeToString()
    write_whole(target, lambda file: file.write(content_bytes))


def _proto(model: Model) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy, None
    if isinstance(model, ir.Model):
        folders = {
            os.fspath(t.base_dir)
            for t in model.graph.initializers.tensors()
            if isinstance(t, ir.ExternalTensor)
        }
        return ir.to_proto(model), Path(folders.pop()) if len(folders) == 1 else None
    path = os.fspath(model)
    return parse(path), Path(os.path.dirname(os.path.abspath(path)))


def _make_dense(graph: onnx.GraphProto, weights: Mapping[str, Array]) -> None:
    """Sparse initializers that get new content have no zeros to leave out any more."""
    kept = []
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        if name in weights:
            dims, dtype = list(sparse.dims), sparse.values.data_type
            graph.initializer.append(onnx.TensorProto(name=name, dims=dims, data_type=dtype))
        else:
            kept.append(sparse)
    if len(kept) != len(graph.sparse_initializer):
        del graph.sparse_initializer[:]
        graph.sparse_initializer.extend(kept)


def _fill(tensor: onnx.TensorProto, content: Array) -> None:
    """New content in the field that held the old."""
    field = next((name for name in _FIELDS if len(getattr(tensor, name))), None)
    if field is None:
        tensor.raw_data = ir.Tensor(content, dtype=ir.DataType(tensor.data_type)).tobytes()
        return
    if field == "int32_data":
        content = content.view(np.uint16)
    del getattr(tensor, field)[:]
    getattr(tensor, field).extend(content.reshape(-1).tolist())


_FIELDS = ("float_data", "double_data", "int32_data")


def _write_external(
    proto: onnx.ModelProto,
    folder: Path,
    target: Path,
    locations: list[str],
    changed: Mapping[str, list[tuple[onnx.TensorProto, Array]]],
) -> None:
    """Copies of the data files with the changed tensors, beside `target`."""
    same_folder = folder.resolve() == target.parent.resolve()
    for number, location in enumerate(locations):
        name = location
        if same_folder:
            if location not in changed:
                continue
            name = target.name + (".data" if number == 0 else f".data{number}")
            _relocate(proto, location, name)
        _copy_patched(folder / location, target.parent / name, changed.get(location, []))


def _copy_patched(source: Path, target: Path, changed: list[tuple[onnx.TensorProto, Array]]) -> None:
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".onnx_grad-")
        os.close(handle)
        temporary = Path(name)
        shutil.copyfile(source, temporary)
        with temporary.open("r+b") as file:
            for tensor, content in changed:
                file.seek(int(_entry(tensor, "offset") or 0))
                file.write(ir.Tensor(content, dtype=ir.DataType(tensor.data_type)).tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~umask())
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write '{target}': {error.strerror or error}") from error


def _relocate(proto: onnx.ModelProto, before: str, after: str) -> None:
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == before:
                entry.value = after


def _entry(tensor: onnx.TensorProto, key: str) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == key), "")
