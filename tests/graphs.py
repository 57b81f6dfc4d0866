"""Small graphs as text, and running them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnxruntime


def parse(graph: str, *, opset: int = 18, ir_version: int = 8, extra: str = "") -> onnx.ModelProto:
    """The model of a `graph` in ONNX's text syntax; `extra` follows it (functions)."""
    opsets = f'"" : {opset}' + (', "custom" : 1' if "custom" in graph or "custom" in extra else "")
    return onnx.parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{opsets}]> {graph} {extra}")


def run(model: onnx.ModelProto, inputs: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The outputs of `model` by name, computed by ONNX Runtime; numbers and lists become float32."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), onnxruntime.SessionOptions())
    names = [output.name for output in session.get_outputs()]
    arrays = {
        name: value if isinstance(value, np.ndarray) else np.asarray(value, dtype=np.float32)
        for name, value in inputs.items()
    }
    return dict(zip(names, session.run(None, arrays), strict=True))


def operators(model: onnx.ModelProto) -> list[str]:
    """The operator types of the model's nodes, in order."""
    return [node.op_type for node in model.graph.node]


def input_names(model: onnx.ModelProto) -> list[str]:
    """The names of the graph inputs, in order."""
    return [value.name for value in model.graph.input]


def output_names(model: onnx.ModelProto) -> list[str]:
    """The names of the graph outputs, in order."""
    return [value.name for value in model.graph.output]
