"""The commands that write a transformed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer

import onnx_grad
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.cli.application import app
from onnx_grad.cli.files import check_other_file, is_noted, noted
from onnx_grad.cli.memory import (
    Recomputed,
    Sizes,
    as_json_object,
    compared,
    print_comparison,
    recompute_of,
    sizes_of,
)
from onnx_grad.cli.options import Json, ModelFile, Of, OutFile, Quantize, Stop, Wrt, names
from onnx_grad.cli.printing import errors, print_json, print_rows, stderr
from onnx_grad.errors import InputError
from onnx_grad.registry import Quantization
from onnx_grad.transforms.jacobians import Mode


@app.command()
def vjp(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    recompute: Recomputed = None,
    size: Sizes = None,
    as_json: Json = False,
) -> None:
    """Write the model with its gradients: cotangent inputs <y>_grad in, gradient outputs <x>_grad out."""
    with errors(as_json):
        recomputation = {"recompute": recompute_of(recompute), "sizes": sizes_of(size)}
    _transform(onnx_grad.vjp, model, out, wrt, of, stop, quantization, as_json, **recomputation)


@app.command()
def grad(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    recompute: Recomputed = None,
    size: Sizes = None,
    as_json: Json = False,
) -> None:
    """Write the model with the gradients of one scalar output: no cotangent input is needed."""
    with errors(as_json):
        recomputation = {"recompute": recompute_of(recompute), "sizes": sizes_of(size)}
    _transform(onnx_grad.grad, model, out, wrt, of, stop, quantization, as_json, **recomputation)


@app.command()
def jvp(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Write the model with its tangents: tangent inputs <x>_tangent in, outputs <y>_tangent out."""
    _transform(onnx_grad.jvp, model, out, wrt, of, stop, quantization, as_json)


@app.command()
def hvp(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Write the model with products of a scalar's Hessian: inputs <x>_tangent in, outputs <x>_hvp out."""
    _transform(onnx_grad.hvp, model, out, wrt, of, stop, quantization, as_json)


@app.command()
def jacobian(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    mode: Annotated[
        Mode,
        typer.Option(help="By rows, one for each element of y, or by columns, one for each element of x."),
    ] = "auto",
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Write the model with its Jacobians: outputs <y>_jacobian_<x>, of the shape of y, then of x."""
    _transform(onnx_grad.jacobian, model, out, wrt, of, stop, quantization, as_json, mode=mode)


@app.command()
def hessian(
    model: ModelFile,
    out: OutFile,
    wrt: Wrt = None,
    of: Of = None,
    stop: Stop = None,
    quantization: Quantize = None,
    as_json: Json = False,
) -> None:
    """Write the model with its Hessians: outputs <y>_hessian_<x1>_<x2>, of the shapes of all three."""
    _transform(onnx_grad.hessian, model, out, wrt, of, stop, quantization, as_json)


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
    **options: Any,
) -> None:
    with errors(as_json):
        check_other_file(model, out)
        started = time.perf_counter()
        plain = partial(transform, model, names(wrt), names(of), stop=stop or (), quantization=quantization)
        with stderr.status("differentiating …"):
            result = plain(save_as=out, **options)
        seconds = time.perf_counter() - started
        summary = _summary(result, out, seconds)
        recomputes = options.get("recompute") is not None
        peaks = compared(plain, result, options["sizes"]) if recomputes else {}
        if as_json:
            print_json({**summary, "peak_memory": as_json_object(peaks)} if recomputes else summary)
        else:
            _print_summary(summary)
            print_comparison(peaks)


# What transforms note in a model, what that is called, and whether it is an input or an output.
_NOTES = {
    "cotangents": ("cotangent", "input"),
    "gradients": ("gradient", "output"),
    "tangents": ("tangent", "input"),
    "output_tangents": ("tangent", "output"),
    "hessian_products": ("Hessian product", "output"),
    "jacobians": ("Jacobian", "output"),
    "hessians": ("Hessian", "output"),
}


def _summary(model: onnx.ModelProto, out: Path, seconds: float) -> dict[str, Any]:
    """What there is to tell of a result; its notes are those of the last transform."""
    own = {METADATA_PREFIX + key for key in ("forward_node", "tensor", "batched_node")}
    added = sum(any(entry.key in own for entry in node.metadata_props) for node in model.graph.node)
    outputs = {value.name for value in (*model.graph.input, *model.graph.output)}
    notes = {kind: noted(model, kind) for kind in _NOTES if is_noted(model, kind)}
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "seconds": seconds,
        "forward_nodes": len(model.graph.node) - added,
        "backward_nodes": added,
        **{kind: names for kind, names in notes.items() if outputs.issuperset(_leaves(names))},
    }


def _print_summary(summary: Mapping[str, Any]) -> None:
    rows = [
        (" by ".join(path), role, f"{place} {name}")
        for kind, (role, place) in _NOTES.items()
        for path, name in _paths(summary.get(kind, {}))
    ]
    print_rows(
        f"{summary['out']}: {summary['forward_nodes']} forward and {summary['backward_nodes']} "
        f"added nodes, {summary['bytes']:,} bytes, in {summary['seconds']:.2f} s",
        rows,
    )


def _paths(names: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The names of inputs or outputs in a mapping of mappings, with the keys that lead there."""
    for key, name in names.items():
        if isinstance(name, str):
            yield (key,), name
        else:
            yield from (((key, *path), leaf) for path, leaf in _paths(name))


def _leaves(names: Mapping[str, Any]) -> list[str]:
    return [name for _, name in _paths(names)]
