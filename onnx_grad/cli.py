"""The command `onnx-grad`.

Results go to stdout, as tables or with `--json` as one JSON object; progress and errors go to stderr. Exit
codes: 0 it worked; 1 the answer is no (a gradient is wrong, something blocks); 2 bad input.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import onnx_grad
from onnx_grad.array_files import Arrays, read_arrays, write_arrays
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.checking import check_gradients
from onnx_grad.checking.evaluators import EvaluatorName
from onnx_grad.errors import InputError, NoLayerWarning, NoPathWarning, OnnxGradError, OutputError
from onnx_grad.registry import Quantization
from onnx_grad.runtime import GradientFunction, is_gradient_model
from onnx_grad.saving import check_target

EXIT_NO = 1
EXIT_BAD_INPUT = 2

app = typer.Typer(
    name="onnx-grad",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Differentiate ONNX models: gradient graphs of standard operators for the stock ONNX Runtime.",
    epilog="Start with: onnx-grad inspect MODEL.onnx, then onnx-grad check MODEL.onnx",
)
stdout = Console()
stderr = Console(stderr=True)

ModelFile = Annotated[Path, typer.Argument(metavar="IN", help="The forward model, an .onnx file.")]
OutFile = Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the gradient model.")]
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


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        stdout.print(f"onnx-grad {onnx_grad.__version__}", highlight=False)
        raise typer.Exit


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
    with _errors(as_json):
        if dropout is not None and no_dropout:
            raise InputError("--dropout and --no-dropout exclude each other; give one of them")
        _check_other_file(model, out)
        ratio = not no_dropout if dropout is None else dropout
        result = onnx_grad.training_mode(
            model, dropout=ratio, batch_norm=not no_batch_norm, layers=layers, save_as=out
        )
        notes = {key: _noted(result, key) for key in ("training_layers", "seed", "updated_statistics")}
        if as_json:
            _print_json({"out": str(out), **notes})
            return
        changed, seeds, updated = notes.values()
        rows = [(layer, operator, "") for layer, operator in changed.items()]
        rows += [(name, "seed of the masks", "input") for name in seeds.values()]
        rows += [(name, f"next {statistic}", "output") for statistic, name in updated.items()]
        _print_rows(f"{out}: {len(changed)} layers in training mode", rows)


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
    with _errors(as_json):
        report = onnx_grad.inspect(model, _names(wrt), _names(of), stop=stop or (), quantization=quantization)
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
    with _errors(as_json):
        if plot is not None:
            check_target(plot)
        names = _graph_inputs(model)
        report = check_gradients(
            model,
            _names(wrt),
            _names(of),
            inputs=_read_arrays(inputs, names) if inputs else None,
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


@app.command()
def run(
    model: ModelFile,
    inputs: Annotated[
        Path,
        typer.Option(
            "--inputs",
            metavar="FILE.npz",
            help="Arrays named after the graph's inputs, and after its cotangent inputs (<y>_grad).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.npz", help="Where to write outputs and gradients.")
    ],
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
    """Run a model and its gradients with ONNX Runtime.

    IN is a forward model, which is differentiated first, or a model that vjp or grad wrote.
    """
    with _errors(as_json):
        check_target(out)
        function = _gradient_function(model, wrt, of, stop, quantization, providers)
        started = time.perf_counter()
        result = function(_read_arrays(inputs, _fed_names(function)))
        seconds = time.perf_counter() - started
        arrays = {
            **result.values,
            **{function.gradient_outputs[x]: dx for x, dx in result.gradients.items()},
        }
        write_arrays(out, arrays)
        if as_json:
            _print_json({"out": str(out), "seconds": seconds, "arrays": _described(arrays)})
        else:
            _print_arrays(f"{out}: {len(arrays)} arrays, run in {seconds * 1e3:.1f} ms", arrays)


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
    with _errors(as_json):
        _check_other_file(model, out)
        started = time.perf_counter()
        with stderr.status("differentiating …"):
            result = transform(
                model, _names(wrt), _names(of), stop=stop or (), quantization=quantization, save_as=out
            )
        seconds = time.perf_counter() - started
        summary = _summary(result, out, seconds)
        if as_json:
            _print_json(summary)
        else:
            _print_summary(summary)


def _check_other_file(model: Path, out: Path) -> None:
    if out.exists() and out.samefile(model):
        raise OutputError(f"'{out}' is the model itself and would be lost; give another name")


def _noted(model: onnx.ModelProto, key: str) -> dict[str, str]:
    """What a transform noted in the metadata of its result."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    noted: dict[str, str] = json.loads(metadata[METADATA_PREFIX + key])
    return noted


def _summary(model: onnx.ModelProto, out: Path, seconds: float) -> dict[str, Any]:
    serving = {METADATA_PREFIX + key for key in ("forward_node", "tensor")}
    added = sum(any(entry.key in serving for entry in node.metadata_props) for node in model.graph.node)
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "seconds": seconds,
        "forward_nodes": len(model.graph.node) - added,
        "backward_nodes": added,
        "cotangents": _noted(model, "cotangents"),
        "gradients": _noted(model, "gradients"),
    }


def _print_summary(summary: Mapping[str, Any]) -> None:
    rows = [(tensor, "cotangent", f"input {name}") for tensor, name in summary["cotangents"].items()]
    rows += [(tensor, "gradient", f"output {name}") for tensor, name in summary["gradients"].items()]
    _print_rows(
        f"{summary['out']}: {summary['forward_nodes']} forward and {summary['backward_nodes']} "
        f"backward nodes, {summary['bytes']:,} bytes, in {summary['seconds']:.2f} s",
        rows,
    )


def _print_rows(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """What a transform did: a tensor or layer, what that is, and where it is in the new graph."""
    stdout.print(escape(title), highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("name", "", "in the new graph"):
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    stdout.print(table)


def _gradient_function(
    model: Path,
    wrt: list[str] | None,
    of: list[str] | None,
    stop: list[str] | None,
    quantization: Quantization | None,
    providers: list[str] | None,
) -> GradientFunction:
    if not is_gradient_model(model):
        return GradientFunction(
            model, _names(wrt), _names(of), stop=stop or (), quantization=quantization, providers=providers
        )
    if wrt or of or stop or quantization:
        raise InputError(
            f"'{model}' already is a gradient model, so --wrt, --of, --stop and --quantization do not apply; "
            "run the forward model with them instead"
        )
    return GradientFunction.from_gradient_model(model, providers=providers)


def _fed_names(function: GradientFunction) -> list[str]:
    return [value.name for value in function.session.get_inputs()]


def _graph_inputs(model: Path) -> list[str]:
    return [value.name or "" for value in onnx_grad.runtime.read_model(model).graph.inputs]


def _read_arrays(path: Path, names: list[str]) -> Arrays:
    """The arrays of an .npz file that are named after the graph's inputs."""
    used, ignored = read_arrays(path, names)
    if ignored:
        stderr.print(f"ignored, no input of that name: {escape(', '.join(ignored))}", style="dim")
    return used


def _described(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in arrays.items()}


def _print_arrays(title: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    stdout.print(escape(title), highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("array", "type", "shape"):
        table.add_column(column)
    table.add_column("largest magnitude", justify="right")
    for name, array in arrays.items():
        largest = f"{float(np.abs(array).max()):.6g}" if array.size and array.dtype.kind in "fiu" else ""
        table.add_row(escape(name), str(array.dtype), escape(str(list(array.shape))), largest)
    stdout.print(table)


def _names(given: list[str] | None) -> str | list[str] | None:
    """One name as a string, so that 'parameters' keeps its meaning; several as a list."""
    if not given:
        return None
    return given[0] if len(given) == 1 else given


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


def _print_json(content: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(content, indent=2))


@contextlib.contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """Errors of the library become a message on stderr and exit code 2; warnings one line each."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            for category in (NoLayerWarning, NoPathWarning):
                warnings.simplefilter("always", category)
            yield
    except OnnxGradError as error:
        if as_json:
            _print_json({"error": {"kind": type(error).__name__, "message": str(error)}})
        else:
            stderr.print(f"[bold red]error[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    finally:
        for warning in caught:
            stderr.print(
                f"[yellow]warning[/]: {escape(str(warning.message))}", highlight=False, soft_wrap=True
            )


def main() -> None:
    """Entry point of the command."""
    app()
