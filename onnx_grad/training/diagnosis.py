"""Where numbers that are infinite or none at all began: the first tensor of a graph that holds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.sessions import create_session

Array: TypeAlias = np.ndarray[Any, Any]


def origin(model: ir.Model, feeds: Mapping[str, Array], settings: Mapping[str, Any]) -> str | None:
    """What to say of the first tensor that is not finite; `None` where all are.

    Args:
        model: A graph that gave numbers that are not finite.
        feeds: What it was given.
        settings: For `create_session`.
    """
    for name, array in feeds.items():
        if not _is_finite(array):
            return f"input '{name}' holds {_described(array)}"
    graph = model.clone().graph
    watched = [
        value
        for node in graph
        for value in node.outputs
        if value.name and value.dtype in known.FLOAT_TYPES and isinstance(value.type, ir.TensorType)
    ]
    graph.outputs.extend(value for value in watched if not value.is_graph_output())
    whole = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    session = create_session(whole, **settings)
    names = [str(value.name) for value in watched]
    arrays = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    for value in watched:
        if not _is_finite(arrays[str(value.name)]):
            return _told(value, arrays)
    return None


def _told(value: ir.Value, arrays: Mapping[str, Array]) -> str:
    node = value.producer()
    if node is None:
        return f"tensor '{value.name}' holds {_described(arrays[str(value.name)])}"
    forward = node.metadata_props.get(METADATA_PREFIX + "forward_node")
    part = f"in the gradient of node '{forward}'" if forward else "in the forward pass"
    reads = [
        f"'{operand.name}' is up to {float(np.abs(arrays[str(operand.name)]).max(initial=0.0)):.3g}"
        for operand in node.inputs
        if operand is not None and operand.name in arrays
    ]
    largest = f"; of its operands, {', '.join(reads)}" if reads else ""
    return (
        f"tensor '{value.name}', which {node.op_type} node '{node.name}' computes {part}, holds "
        f"{_described(arrays[str(value.name)])}{largest}"
    )


def _is_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _described(array: Array) -> str:
    nans, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    parts = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(parts)} of {array.size} numbers"
