"""Lifting a model to the oldest opset that the rules are written for."""

from __future__ import annotations

import onnx

from onnx_grad.errors import ModelError
from onnx_grad.prepare.opset6 import from_opset_6
from onnx_grad.prepare.validate import opset_of

OLDEST_OPSET = 18


def lift(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` at opset 18, or `proto` itself when it is at 18 or later.

    Node and value names, types, shapes and metadata of the model are those it had.

    Raises:
        ModelError: onnx's version converter cannot convert the model.
    """
    version = opset_of(proto)
    if version is None or version >= OLDEST_OPSET:
        return proto
    if version < 7:
        proto = from_opset_6(_convert(proto, 6) if version < 6 else proto)
    lifted = _convert(proto, OLDEST_OPSET)
    if version < 11:
        _resize_from_corners(lifted)
    _restore(lifted, proto)
    return lifted


def _convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(proto, version)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ModelError(
            f"the model uses opset {opset_of(proto)} and cannot be converted to {version}: {error}; "
            "export it again with a newer opset"
        ) from error


def _resize_from_corners(lifted: onnx.ModelProto) -> None:
    """Say what Resize and Upsample did before opset 11: count from the corner of a pixel, and round down.

    The converter leaves the defaults of opset 11, which count from its centre.
    """
    for node in lifted.graph.node:
        if node.op_type == "Resize" and node.domain == "":
            mode = onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
            node.attribute.extend([mode, onnx.helper.make_attribute("nearest_mode", "floor")])


def _restore(lifted: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Put back what the converter loses: annotations, node metadata, functions, model properties."""
    # The converter turns an output of unknown rank into a scalar.
    for name in ("input", "output", "value_info"):
        _replace(getattr(lifted.graph, name), getattr(original.graph, name))
    _replace(lifted.functions, original.functions)
    _replace(lifted.metadata_props, original.metadata_props)
    by_output = {node.output[0]: node for node in original.graph.node if node.output}
    for node in lifted.graph.node:
        before = by_output.get(node.output[0]) if node.output else None
        if before is not None and before.op_type == node.op_type:
            _replace(node.metadata_props, before.metadata_props)
            node.doc_string = before.doc_string


def _replace(target: object, source: object) -> None:
    del target[:]  # type: ignore[attr-defined]
    target.extend(source)  # type: ignore[attr-defined]
