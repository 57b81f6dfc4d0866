"""What holds other than tensors, and so has no batch axis."""

from __future__ import annotations

from onnx_grad.batching.registry import refused, runs_in_scan

refused(
    *"ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct "
    "SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence".split(),
    reason="it handles sequences or optionals, which have no batch axis; express the model over tensors",
)
runs_in_scan("DynamicQuantizeLinear")
