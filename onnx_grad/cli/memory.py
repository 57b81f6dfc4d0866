"""The command that estimates memory, and what commands that recompute take and tell."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer
from rich.markup import escape

import onnx_grad
from onnx_grad.cli.application import app
from onnx_grad.cli.options import Json
from onnx_grad.cli.printing import errors, print_json, stdout
from onnx_grad.errors import InputError
from onnx_grad.memory import PeakMemory, peak_memory
from onnx_grad.recomputation import Recompute

Recomputed = Annotated[
    list[str] | None,
    typer.Option(
        "--recompute",
        metavar="NAME|sqrt|BYTES",
        help="Compute this intermediate tensor again in the backward pass rather than keep it; repeat for "
        "more. 'sqrt': all but about √n checkpoints. A size like 64MB: as much as it takes to fit.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="SYMBOL=N",
        help="What a symbol in the shapes of the inputs stands for when memory is estimated, as in batch=32; "
        "repeat for more.",
    ),
]

_UNITS = {"B": 1, **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("kMG", 1)}}
_UNITS |= {f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMG", 1)}
# Never without a unit: a mere number is what exporters call tensors.
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")


@app.command()
def memory(
    model: Annotated[Path, typer.Argument(metavar="IN", help="Any model, an .onnx file.")],
    size: Sizes = None,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse/--no-reuse",
            help="Whether ONNX Runtime holds memory for later tensors of one shape (its enable_mem_reuse).",
        ),
    ] = True,
    optimized: Annotated[
        bool,
        typer.Option(
            "--optimized",
            help="Have ONNX Runtime optimise the model first: it fuses nodes, which changes their order.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Estimate how much memory the activations of a model take at most, and which they are."""
    with errors(as_json):
        peak = peak_memory(model, sizes=sizes_of(size), reuse=reuse, optimized=optimized)
        if as_json:
            print_json(dataclasses.asdict(peak))
        else:
            stdout.print(escape(str(peak)), highlight=False)


def recompute_of(given: Sequence[str] | None) -> Recompute | None:
    """What `--recompute` asks for: one `sqrt` or size, or names."""
    if not given:
        return None
    only = given[0] if len(given) == 1 else ""
    if only == "sqrt":
        return "sqrt"
    found = _SIZE.fullmatch(only)
    return list(given) if found is None else int(float(found[1]) * _UNITS[found[2]])


def sizes_of(given: Sequence[str] | None) -> dict[str, int] | None:
    """`SYMBOL=N` as a mapping.

    Raises:
        InputError: Something else is given.
    """
    if not given:
        return None
    sizes = {}
    for text in given:
        symbol, _, number = text.rpartition("=")
        if not symbol or not number.isdigit():
            raise InputError(f"--size: '{text}' is not SYMBOL=N with a number of elements as N")
        sizes[symbol] = int(number)
    return sizes


def compared(
    transform: Callable[..., onnx.ModelProto], result: onnx.ModelProto, sizes: Mapping[str, int] | None
) -> dict[str, PeakMemory]:
    """The peak of memory without recomputing, which `transform` gives then, and with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnx_grad.NoPathWarning)
        before = transform()
    return {"before": peak_memory(before, sizes=sizes), "after": peak_memory(result, sizes=sizes)}


def print_comparison(peaks: Mapping[str, PeakMemory]) -> None:
    """Print both peaks."""
    for when, peak in peaks.items():
        stdout.print(escape(f"{when} recomputing: {peak}"), highlight=False)


def as_json_object(peaks: Mapping[str, PeakMemory]) -> dict[str, Any]:
    """Both peaks as JSON."""
    return {when: dataclasses.asdict(peak) for when, peak in peaks.items()}
