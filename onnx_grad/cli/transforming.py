"""The commands that write a transformed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer

import onnx_grad
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.cli.application import app
from onnx_grad.cli.files import check_other_file, noted
from onnx_grad.cli.options import Json, ModelFile, Of, OutFile, Quantize, Stop, Wrt, names
from onnx_grad.cli.printing import errors, print_json, print_rows, stderr
from onnx_grad.errors import InputError
from onnx_grad.registry import Quantization


@app.command()
def vjp(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Write the model with its gradients: cotangent inputs <y>_grad in, gradient outputs <x>_grad out."""
    _transform(onnx_grad.vjp, model, out, wrt, of, stop, quantization, as_json)


@app.command()
def grad(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Write the model with the gradients of one scalar output: no cotangent input is needed."""
    _transform(onnx_grad.grad, model, out, wrt, of, stop, quantization, as_json)


@app.command(name="training-mode")
def training_mode(
    model: ModelFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the model.")],
    dropout: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Ratio of all Dropout layers. Default: each has its own."),
    ] = None,
    no_dropout: Annotated[bool, typer.Option("--no-dropout", help="Leave Dropout as it is.")] = False,
    no_batch_norm: Annotated[
        bool, typer.Option("--no-batch-norm", help="Leave BatchNormalization as it is.")
    ] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="NAME",
            help="Change the layers that this node name or pattern fits; repeat for more. Default: all.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model as it is in training: Dropout active, BatchNormalization with the batch's statistics.

    OUT has an input for the seed of the masks, and outputs for the updated running statistics.
    """
    with errors(as_json):
        if dropout is not None and no_dropout:
            raise InputError("--dropout and --no-dropout exclude each other; give one of them")
        check_other_file(model, out)
        ratio = not no_dropout if dropout is None else dropout
        result = onnx_grad.training_mode(
            model, dropout=ratio, batch_norm=not no_batch_norm, layers=layers, save_as=out
        )
        notes = {key: noted(result, key) for key in ("training_layers", "seed", "updated_statistics")}
        if as_json:
            print_json({"out": str(out), **notes})
            return
        changed, seeds, updated = notes.values()
        rows = [(layer, operator, "") for layer, operator in changed.items()]
        rows += [(name, "seed of the masks", "input") for name in seeds.values()]
        rows += [(name, f"next {statistic}", "output") for statistic, name in updated.items()]
        print_rows(f"{out}: {len(changed)} layers in training mode", rows)


def _transform(
    transform: Callable[..., onnx.ModelProto],
    model: Path,
    out: Path,
    wrt: list[str] | None,
    of: list[str] | None,
    stop: list[str] | None,
    quantization: Quantization | None,
    as_json: bool,
) -> None:
    with errors(as_json):
        check_other_file(model, out)
        started = time.perf_counter()
        with stderr.status("differentiating …"):
            result = transform(
                model, names(wrt), names(of), stop=stop or (), quantization=quantization, save_as=out
            )
        seconds = time.perf_counter() - started
        summary = _summary(result, out, seconds)
        if as_json:
            print_json(summary)
        else:
            _print_summary(summary)


def _summary(model: onnx.ModelProto, out: Path, seconds: float) -> dict[str, Any]:
    serving = {METADATA_PREFIX + key for key in ("forward_node", "tensor")}
    added = sum(any(entry.key in serving for entry in node.metadata_props) for node in model.graph.node)
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "seconds": seconds,
        "forward_nodes": len(model.graph.node) - added,
        "backward_nodes": added,
        "cotangents": noted(model, "cotangents"),
        "gradients": noted(model, "gradients"),
    }


def _print_summary(summary: Mapping[str, Any]) -> None:
    rows = [(tensor, "cotangent", f"input {name}") for tensor, name in summary["cotangents"].items()]
    rows += [(tensor, "gradient", f"output {name}") for tensor, name in summary["gradients"].items()]
    print_rows(
        f"{summary['out']}: {summary['forward_nodes']} forward and {summary['backward_nodes']} "
        f"backward nodes, {summary['bytes']:,} bytes, in {summary['seconds']:.2f} s",
        rows,
    )
