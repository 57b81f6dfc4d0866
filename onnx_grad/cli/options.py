"""The arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_grad.registry import Quantization

ModelFile = Annotated[Path, typer.Argument(metavar="IN", help="The forward model, an .onnx file.")]
OutFile = Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the transformed model.")]
Wrt = Annotated[
    list[str] | None,
    typer.Option(
        "--wrt",
        metavar="NAME",
        help="Differentiate with respect to this input, initializer or intermediate tensor; repeat for more. "
        "'parameters' means every weight. Default: every float input.",
    ),
]
Of = Annotated[
    list[str] | None,
    typer.Option(
        "--of",
        metavar="NAME",
        help="Differentiate this output or intermediate tensor; repeat for more. "
        "Default: every float output.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="NAME", help="Treat this tensor as a constant: no gradient flows through it."
    ),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(
        help="What is done where numbers are rounded to integers: take rounding for the identity. Default: "
        "refuse it."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs", metavar="FILE.npz", help="Arrays named after the graph's inputs; others are ignored."
    ),
]


def names(given: list[str] | None) -> str | list[str] | None:
    """One name as a string, so that 'parameters' keeps its meaning; several as a list."""
    if not given:
        return None
    return given[0] if len(given) == 1 else given
