"""The command that lowers training operators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import onnx_grad
from onnx_grad.cli.application import app
from onnx_grad.cli.files import check_other_file, noted
from onnx_grad.cli.options import Json
from onnx_grad.cli.printing import errors, print_json, print_rows


@app.command()
def lower(
    model: Annotated[
        Path, typer.Argument(metavar="IN", help="A model with training operators, an .onnx file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the model.")],
    as_json: Json = False,
) -> None:
    """Write the model with standard operators in the place of Gradient, Adam, Adagrad and Momentum."""
    with errors(as_json):
        check_other_file(model, out)
        lowered = noted(onnx_grad.lower(model, save_as=out), "lowered")
        if as_json:
            print_json({"out": str(out), "bytes": out.stat().st_size, "lowered": lowered})
        else:
            rows = [(node, operator, "standard operators") for node, operator in lowered.items()]
            print_rows(f"{out}: {len(lowered)} training operators lowered", rows)
