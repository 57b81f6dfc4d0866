"""The commands that tell about gradients: what there is, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import onnx_grad
from onnx_grad.checking import check_gradients
from onnx_grad.checking.evaluators import EvaluatorName
from onnx_grad.cli.application import EXIT_NO, app
from onnx_grad.cli.files import read_arrays
from onnx_grad.cli.options import Inputs, Json, ModelFile, Of, Quantize, Stop, Wrt, names
from onnx_grad.cli.printing import errors, stdout
from onnx_grad.errors import InputError
from onnx_grad.saving import check_target


@app.command()
def inspect(
    model: ModelFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Show what would be differentiated, by which rule, and everything that blocks."""
    with errors(as_json):
        report = onnx_grad.inspect(model, names(wrt), names(of), stop=stop or (), quantization=quantization)
        if as_json:
            typer.echo(report.to_json())
        else:
            stdout.print(report)
    if not report.differentiable:
        raise typer.Exit(EXIT_NO)


@app.command()
def check(
    model: ModelFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    inputs: Inputs = None,
    dims: Annotated[
        list[str] | None,
        typer.Option("--dim", metavar="NAME=SIZE", help="Size of a symbolic dimension: --dim batch=4."),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="NAME=LOW:HIGH", help="Values of an integer input, LOW <= value < HIGH."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.png", help="Plot the error against the step of the differences."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated inputs and directions.")] = 0,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance. Default: by element type.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance. Default: by element type.")] = None,
    evaluator: Annotated[
        EvaluatorName | None,
        typer.Option(help="What computes the finite differences. Default: the most precise that can."),
    ] = None,
    max_coordinates: Annotated[
        int, typer.Option(help="Up to how many elements every coordinate of a tensor is checked.")
    ] = 64,
    time_limit: Annotated[
        float,
        typer.Option(
            help="Seconds that the slow but precise reference evaluator may take; beyond, ONNX Runtime "
            "computes the finite differences in float32."
        ),
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Compare the gradients with finite differences of the model itself.

    Inputs that are not given are generated from their declared shapes and types.
    """
    with errors(as_json):
        if plot is not None:
            check_target(plot)
        expected = _graph_inputs(model)
        report = check_gradients(
            model,
            names(wrt),
            names(of),
            inputs=read_arrays(inputs, expected) if inputs else None,
            dims=dict(_assignments("--dim", dims, int)),
            integer_ranges=dict(_assignments("--range", ranges, _range)),
            seed=seed,
            stop=stop or (),
            quantization=quantization,
            rtol=rtol,
            atol=atol,
            evaluator=evaluator,
            max_coordinates=max_coordinates,
            time_limit=time_limit,
        )
        if plot is not None:
            report.plot(plot)
        if as_json:
            typer.echo(report.to_json())
        else:
            stdout.print(report)
    if not report.passed:
        raise typer.Exit(EXIT_NO)


def _graph_inputs(model: Path) -> list[str]:
    return [value.name or "" for value in onnx_grad.runtime.read_model(model).graph.inputs]


def _assignments(
    option: str, given: list[str] | None, parse: Callable[[str], Any]
) -> Iterator[tuple[str, Any]]:
    for text in given or []:
        name, equals, value = text.rpartition("=")
        try:
            parsed = parse(value)
        except ValueError:
            equals = ""
        if not name or not equals:
            example = "batch=4" if option == "--dim" else "ids=0:100"
            raise InputError(f"{option} '{text}' is not understood; write it like {option} {example}")
        yield name, parsed


def _range(text: str) -> tuple[int, int]:
    low, high = text.split(":")
    return int(low), int(high)
