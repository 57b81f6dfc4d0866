"""Sequences, optionals and strings: declared, so that nothing is forgotten."""

from __future__ import annotations

from onnx_grad.registry import derivative_is_zero, refused

# What `prepare.sequences` could not express over tensors.
refused(
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
    reason="sequences and optionals are made tensors before differentiating, where it is known what they "
    "hold, or where that is the pieces of one tensor or what a loop appends; elsewhere export the model with "
    "tensors (Split and Concat), or cut the flow with stop=[…]",
)
derivative_is_zero("OptionalHasElement", "SequenceLength", reason="its result counts, and does not vary")
derivative_is_zero(
    "ImageDecoder",
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
    reason="its inputs are not numbers that vary continuously",
)
