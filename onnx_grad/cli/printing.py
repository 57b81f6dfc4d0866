"""What commands print: tables, JSON, errors and warnings."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_grad.errors import NoLayerWarning, NoPathWarning, OnnxGradError

EXIT_BAD_INPUT = 2

stdout = Console()
stderr = Console(stderr=True)


def print_rows(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """What a transform did: a tensor or layer, what that is, and where it is in the new graph."""
    stdout.print(escape(title), highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("name", "", "in the new graph"):
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    stdout.print(table)


def described(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, dict[str, Any]]:
    """The type and shape of each array."""
    return {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in arrays.items()}


def print_arrays(title: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Print a table of arrays."""
    stdout.print(escape(title), highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("array", "type", "shape"):
        table.add_column(column)
    table.add_column("largest magnitude", justify="right")
    for name, array in arrays.items():
        largest = f"{float(np.abs(array).max()):.6g}" if array.size and array.dtype.kind in "fiu" else ""
        table.add_row(escape(name), str(array.dtype), escape(str(list(array.shape))), largest)
    stdout.print(table)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(content, indent=2))


@contextlib.contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Errors of the library become a message on stderr and exit code 2; warnings one line each."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            for category in (NoLayerWarning, NoPathWarning):
                warnings.simplefilter("always", category)
            yield
    except OnnxGradError as error:
        if as_json:
            print_json({"error": {"kind": type(error).__name__, "message": str(error)}})
        else:
            stderr.print(f"[bold red]error[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    finally:
        for warning in caught:
            stderr.print(
                f"[yellow]warning[/]: {escape(str(warning.message))}", highlight=False, soft_wrap=True
            )
