"""Reading and changing nodes while they are protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

Attribute = str | int | Sequence[int]


def integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """An integer attribute of `node`."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def integers(node: onnx.NodeProto, name: str, default: Sequence[int]) -> list[int]:
    """An attribute of `node` that is a list of integers."""
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [*default])


def auto_pad(node: onnx.NodeProto) -> str:
    """How `node` pads: NOTSET, VALID, SAME_UPPER or SAME_LOWER."""
    return next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "") or "NOTSET"


def set_attributes(node: onnx.NodeProto, **attributes: Attribute | None) -> None:
    """Give `node` these attributes, and take those from it that are `None`."""
    others = [attribute for attribute in node.attribute if attribute.name not in attributes]
    given = [onnx.helper.make_attribute(n, value) for n, value in attributes.items() if value is not None]
    del node.attribute[:]
    node.attribute.extend([*others, *given])


def spatial_sizes(types: Mapping[str, onnx.TypeProto], name: str) -> tuple[int, ...] | None:
    """The sizes of a value behind its first two axes; `None` unless all are known and positive."""
    tensor_type = types.get(name, onnx.TypeProto()).tensor_type
    sizes = tuple(dim.dim_value for dim in tensor_type.shape.dim[2:])
    return sizes if tensor_type.HasField("shape") and all(size > 0 for size in sizes) else None
