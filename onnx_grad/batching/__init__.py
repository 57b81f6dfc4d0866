"""Batching: from a graph for one example to a graph for a batch of them, operator by operator.

`batch` is the core: it builds the batched counterpart of nodes. What an operator does to a batch is its
batching rule, in `onnx_grad.batching.rules`; an operator without one runs example by example in a `Scan`.
"""

import onnx_grad.batching.rules  # noqa: F401  (fills the table)
from onnx_grad.batching.operands import Batch
from onnx_grad.batching.registry import batching
from onnx_grad.batching.sequential import SEQUENTIAL
from onnx_grad.batching.walk import Batched, batch

__all__ = ["SEQUENTIAL", "Batch", "Batched", "batch", "batching"]
