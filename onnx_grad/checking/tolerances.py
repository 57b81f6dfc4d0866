"""How close two derivatives must be, by the precision they were computed in. The one table."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Tolerance:
    """Two derivatives a and b agree when |a - b| <= relative * max(|a|, |b|) + absolute.

    Attributes:
        relative: Relative to the two numbers themselves.
        scaled: Part of the absolute tolerance, relative to the size of the whole gradient: an element
            that is tiny beside the others carries their rounding errors.
        floor: Part of the absolute tolerance, relative to the size of the outputs per size of the tensor.
            Below that, a difference of two rounded outputs resolves nothing, and a gradient may be
            what rounding leaves of large numbers that cancel.
    """

    relative: float
    scaled: float
    floor: float = 0.0


# Finite differences of the model against the gradient graph, by the precision of the evaluation.
FINITE_DIFFERENCES = {
    "float64": Tolerance(relative=1e-6, scaled=1e-8, floor=1e-10),
    "float32": Tolerance(relative=1e-2, scaled=5e-3, floor=1e-4),
}

# The gradient graph in the model's own type against the same in float64.
OWN_PRECISION = {
    ir.DataType.DOUBLE: Tolerance(relative=1e-9, scaled=1e-11, floor=1e-15),
    ir.DataType.FLOAT: Tolerance(relative=1e-3, scaled=1e-5, floor=5e-7),
    ir.DataType.FLOAT16: Tolerance(relative=5e-2, scaled=5e-3, floor=4e-3),
    ir.DataType.BFLOAT16: Tolerance(relative=2e-1, scaled=3e-2, floor=3e-2),
}

# A gradient that is smaller than this part of its natural size is what rounding left of others: errors are
# not given relative to it.
NEGLIGIBLE_GRADIENT = 1e-6


def looser(a: Tolerance, b: Tolerance) -> Tolerance:
    """The tolerance for comparing results of two precisions."""
    return Tolerance(max(a.relative, b.relative), max(a.scaled, b.scaled), max(a.floor, b.floor))
