"""The command that runs a model and its gradients."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from onnx_grad.array_files import write_arrays
from onnx_grad.cli.application import app
from onnx_grad.cli.files import read_arrays
from onnx_grad.cli.options import Json, ModelFile, Of, Quantize, Stop, Wrt, names
from onnx_grad.cli.printing import described, errors, print_arrays, print_json
from onnx_grad.errors import InputError
from onnx_grad.registry import Quantization
from onnx_grad.runtime import GradientFunction, Transform, is_gradient_model
from onnx_grad.saving import check_target


@app.command()
def run(
    model: ModelFile,
    inputs: Annotated[
        Path,
        typer.Option(
            "--inputs",
            metavar="FILE.npz",
            help="Arrays named after the graph's inputs, and after those of its directions: cotangents "
            "(<y>_grad), tangents (<x>_tangent).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.npz", help="Where to write outputs and derivatives.")
    ],
    transform: Annotated[
        Transform | None, typer.Option(help="How a forward model is differentiated. Default: vjp.")
    ] = None,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    providers: Annotated[
        list[str] | None,
        typer.Option(
            "--providers",
            metavar="NAME",
            help="Execution provider of ONNX Runtime, such as CUDAExecutionProvider; repeat in order of "
            "precedence. Default: the CPU.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a model and its derivatives with ONNX Runtime.

    IN is a forward model, which is differentiated first, or a model that another command wrote.
    """
    with errors(as_json):
        check_target(out)
        function = _gradient_function(model, transform, wrt, of, stop, quantization, providers)
        started = time.perf_counter()
        result = function(read_arrays(inputs, _fed_names(function)))
        seconds = time.perf_counter() - started
        arrays = dict(result.outputs)
        write_arrays(out, arrays)
        if as_json:
            print_json({"out": str(out), "seconds": seconds, "arrays": described(arrays)})
        else:
            print_arrays(f"{out}: {len(arrays)} arrays, run in {seconds * 1e3:.1f} ms", arrays)


def _gradient_function(
    model: Path,
    transform: Transform | None,
    wrt: list[str] | None,
    of: list[str] | None,
    stop: list[str] | None,
    quantization: Quantization | None,
    providers: list[str] | None,
) -> GradientFunction:
    if not is_gradient_model(model):
        return GradientFunction(
            model,
            names(wrt),
            names(of),
            transform=transform or "vjp",
            stop=stop or (),
            quantization=quantization,
            providers=providers,
        )
    if transform or wrt or of or stop or quantization:
        raise InputError(
            f"'{model}' already is a gradient model, so --transform, --wrt, --of, --stop and --quantization "
            "do not apply; run the forward model with them instead"
        )
    return GradientFunction.from_gradient_model(model, providers=providers)


def _fed_names(function: GradientFunction) -> list[str]:
    return [value.name for value in function.session.get_inputs()]
