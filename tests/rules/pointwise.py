"""Gradients of single operators at chosen points, for tests of values rather than of differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.oracle import gradients, single_node

# Close to float32's own rounding of a handful of operations, by the dtype of the graph.
TOLERANCES = {np.float64: 1e-12, np.float32: 2e-6, np.float16: 4e-3}


def slopes(
    op_type: str, inputs: Mapping[str, np.ndarray], *, opset: int = 18, **attributes: Any
) -> dict[str, np.ndarray]:
    """The gradient of the sum of `op_type(inputs)` with respect to each input."""
    model = single_node(op_type, inputs, opset=opset, **attributes)
    shape = np.broadcast_shapes(*(a.shape for a in inputs.values()))
    dtype = next(a.dtype for a in inputs.values() if a.dtype.kind == "f")
    wrt = [x for x, a in inputs.items() if a.dtype.kind == "f"]
    return gradients(model, inputs, {"y0": np.ones(shape, dtype)}, wrt)
