"""The graph that ONNX Runtime makes of a model before it runs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_grad.memory.sizes import sized
from onnx_grad.sessions import create_session, onnxruntime

_WEIGHTS = "weights"


def as_optimized(model: ir.Model) -> ir.Model:
    """What ONNX Runtime makes of `model` for its CPU provider, its nodes in the order in which they run.

    That is at the optimisation level `EXTENDED`, with nodes fused. Above it, convolutions get a layout of
    their own, and what is known of shapes ends there.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed, or has no kernel for an operator.
        ModelError: ONNX Runtime refuses the model.
    """
    runtime = onnxruntime()
    with tempfile.TemporaryDirectory(prefix="onnx-grad-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
        create_session(model, providers=["CPUExecutionProvider"], session_options=options)
        # It writes down the shapes of what it made itself only.
        return sized(onnx.load(path, load_external_data=False), None)
