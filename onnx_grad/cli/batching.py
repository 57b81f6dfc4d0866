"""The command that writes a batched model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import onnx
import typer

import onnx_grad
from onnx_grad.batching import SEQUENTIAL
from onnx_grad.cli.application import app
from onnx_grad.cli.files import check_other_file
from onnx_grad.cli.options import Json, ModelFile
from onnx_grad.cli.printing import errors, print_json, print_rows, stderr
from onnx_grad.errors import InputError
from onnx_grad.signature import shape_text


@app.command()
def vmap(
    model: ModelFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the batched model.")],
    in_axis: Annotated[
        list[str] | None,
        typer.Option(
            "--in-axis",
            metavar="NAME=AXIS",
            help="This input gets the new axis, there; repeat for more. The other inputs are the same for "
            "all examples. Default: every input, in front.",
        ),
    ] = None,
    out_axis: Annotated[
        list[str] | None,
        typer.Option(
            "--out-axis",
            metavar="NAME=AXIS",
            help="Where the new axis is in this output, or 'none' for one without it; repeat for more. "
            "Default: in front.",
        ),
    ] = None,
    axis_size: Annotated[
        int | None, typer.Option(metavar="N", help="Fix the number of examples. Default: any number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model over a new axis: one run computes a batch of examples."""
    with errors(as_json):
        check_other_file(model, out)
        in_axes = _axes("--in-axis", in_axis) if in_axis else 0
        out_axes = _axes("--out-axis", out_axis) if out_axis else 0
        started = time.perf_counter()
        with stderr.status("batching …"):
            result = onnx_grad.vmap(model, in_axes, out_axes, axis_size=axis_size, save_as=out)
        seconds = time.perf_counter() - started
        sequential = _sequential(result)
        inputs, outputs = _shapes(result.graph.input), _shapes(result.graph.output)
        if as_json:
            print_json(
                {
                    "out": str(out),
                    "bytes": out.stat().st_size,
                    "seconds": seconds,
                    "nodes": len(result.graph.node),
                    "inputs": inputs,
                    "outputs": outputs,
                    "example_by_example": sequential,
                }
            )
            return
        rows = [(name, "input", shape) for name, shape in inputs.items()]
        rows += [(name, "output", shape) for name, shape in outputs.items()]
        rows += [(op, "example by example", f"{count} nodes") for op, count in sequential.items()]
        print_rows(f"{out}: {len(result.graph.node)} nodes, in {seconds:.2f} s", rows)


def _axes(option: str, given: Sequence[str]) -> dict[str, int | None]:
    """`NAME=AXIS` as a mapping; names may hold equal signs themselves."""
    axes: dict[str, int | None] = {}
    for text in given:
        name, equals, axis = text.rpartition("=")
        if not equals or not name or not (axis == "none" or axis.lstrip("-").isdigit()):
            raise InputError(f"{option}: '{text}' is not NAME=AXIS with an integer or 'none' as AXIS")
        axes[name] = None if axis == "none" else int(axis)
    return axes


def _shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, str]:
    shapes = {}
    for value in values:
        tensor = value.type.tensor_type
        dims = [d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in tensor.shape.dim]
        shapes[value.name] = shape_text(dims if tensor.HasField("shape") else None)
    return shapes


def _sequential(model: onnx.ModelProto) -> dict[str, int]:
    """The operators that run example by example, with how many nodes there are of each."""
    notes = (entry for node in model.graph.node for entry in node.metadata_props)
    return dict(Counter(entry.value for entry in notes if entry.key == SEQUENTIAL))
