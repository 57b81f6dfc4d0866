"""From a path, a `ModelProto` or an `ir.Model` to a light copy; the caller's model is never changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnx_grad.errors import ModelError
from onnx_grad.prepare.weights import LightModel, lighten, lighten_ir

Model: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model"


def load(model: Model) -> LightModel:
    """Load `model` without reading its external weights.

    Raises:
        ModelError: There is no such file, it is no ONNX model, or its external data is not there.
    """
    if isinstance(model, ir.Model):
        return lighten_ir(model)
    if isinstance(model, onnx.ModelProto):
        return lighten(model)
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return lighten(parse(path), os.path.dirname(os.path.abspath(path)))
    raise ModelError(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}")


def parse(path: str) -> onnx.ModelProto:
    """The model in the file at `path`; its external data is not looked at.

    Raises:
        ModelError: There is no such file, or it is no ONNX model.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(
            f"'{path}' is not an ONNX model, or it is truncated ({len(content)} bytes were read)"
        ) from error
    if not proto.HasField("graph"):
        raise ModelError(f"'{path}' is not an ONNX model: it holds no graph")
    return proto
