"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

import onnx_grad
from onnx_grad.cli.printing import stdout

EXIT_NO = 1

app = typer.Typer(
    name="onnx-grad",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Differentiate ONNX models: gradient graphs of standard operators for the stock ONNX Runtime.",
    epilog="Start with: onnx-grad inspect MODEL.onnx, then onnx-grad check MODEL.onnx",
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        stdout.print(f"onnx-grad {onnx_grad.__version__}", highlight=False)
        raise typer.Exit
