"""The commands that train: here, or as files for a loop elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table

from onnx_grad.cli.application import app
from onnx_grad.cli.options import Json, ModelFile
from onnx_grad.cli.printing import errors, print_json, stdout
from onnx_grad.cli.training_options import (
    Average,
    ClipNorm,
    Frozen,
    Labels,
    LossName,
    LossOptions,
    NoTrainingMode,
    OptimizerName,
    OptimizerOptions,
    Output,
    Parameters,
    Reinitialize,
    Seed,
    loss_of,
    optimizer_of,
)
from onnx_grad.errors import InputError
from onnx_grad.saving import check_target
from onnx_grad.training import (
    SCHEDULES,
    EarlyStopping,
    LoRA,
    Schedule,
    StepDecay,
    Trainer,
    loop_program,
    plot_curves,
    read_artifacts,
    write_artifacts,
)
from onnx_grad.training.mixed_precision import PRECISIONS, Precision


@app.command()
def train(
    model: ModelFile,
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="FILE.npz", help="Arrays named after the graph's inputs, and the labels."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="OUT.onnx", help="Where to write the tuned model.")],
    loss: LossName,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", metavar="FILE.npz", help="Data to evaluate on after each epoch.")
    ] = None,
    labels: Labels = None,
    output: Output = None,
    loss_option: LossOptions = None,
    optimizer: OptimizerName = "adamw",
    optimizer_option: OptimizerOptions = None,
    lr: Annotated[float, typer.Option("--lr", help="The learning rate.")] = 1e-3,
    schedule: Annotated[
        str, typer.Option("--schedule", help=f"Of the learning rate: {', '.join(SCHEDULES)} or step.")
    ] = "constant",
    decay_every: Annotated[
        int | None,
        typer.Option("--decay-every", metavar="UPDATES", help="When --schedule step multiplies it with 0.1."),
    ] = None,
    warmup: Annotated[
        int,
        typer.Option("--warmup", metavar="UPDATES", help="Let the learning rate grow over the first ones."),
    ] = 0,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Examples of a batch.")] = 32,
    accumulation: Annotated[
        int, typer.Option("--accumulation", metavar="BATCHES", help="Batches for one update.")
    ] = 1,
    seed: Seed = 0,
    parameters: Parameters = None,
    frozen: Frozen = None,
    clip_norm: ClipNorm = None,
    average: Average = None,
    reinitialize: Reinitialize = False,
    no_training_mode: NoTrainingMode = False,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help=f"Of products: {', '.join(PRECISIONS)}. Default: float32."),
    ] = None,
    lora: Annotated[
        int | None, typer.Option("--lora", metavar="RANK", help="Train low-rank adapters of weights only.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option("--lora-alpha", help="Adapters count alpha / RANK times. Default: once.")
    ] = None,
    lora_weights: Annotated[
        list[str] | None,
        typer.Option("--lora-weights", metavar="PATTERN", help="Weights with adapters; repeat for more."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="FILE", help="Write the adapters in ONNX Runtime's format too."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="What an evaluation tells besides the loss: accuracy; repeat for more.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience", metavar="EPOCHS", help="Stop when the evaluation's loss got no better for so long."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="A folder for checkpoints.")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            "--checkpoint-every", metavar="UPDATES", help="Write one after so many, and after each epoch."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR, if there is one.")
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE.jsonl", help="A JSON line for each update and epoch."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the curves of the log.")
    ] = None,
    providers: Annotated[
        list[str] | None,
        typer.Option(
            "--providers", metavar="NAME", help="Execution provider of ONNX Runtime; repeat for more."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on data, and write it with its new weights and nothing else changed."""
    with errors(as_json):
        check_target(out)
        if adapter is not None:
            check_target(adapter)
        if lora is None and (adapter is not None or lora_alpha is not None or lora_weights):
            raise InputError(
                "--adapter, --lora-alpha and --lora-weights are about adapters; give --lora RANK too"
            )
        if plot is not None:
            check_target(plot)
            if log is None:
                raise InputError("--plot draws the curves of the log; give --log FILE.jsonl too")
        if patience is not None and evaluation is None:
            raise InputError("--patience watches the evaluation; give --eval FILE.npz too")
        started = time.perf_counter()
        trainer = Trainer(
            model,
            loss_of(loss, loss_option),
            optimizer_of(optimizer, optimizer_option),
            parameters=parameters,
            frozen=frozen,
            output=output,
            target=labels,
            learning_rate=lr,
            schedule=_schedule(schedule, warmup, decay_every),
            clip_norm=clip_norm,
            accumulation=accumulation,
            average=average,
            training_mode=not no_training_mode,
            batch_size=batch_size,
            seed=seed,
            precision=None if precision is None else _precision(precision),
            lora=None if lora is None else LoRA(lora, lora_alpha, lora_weights),
            providers=providers,
        )
        if reinitialize:
            trainer.reinitialize()
        history = trainer.fit(
            data,
            epochs,
            evaluation=evaluation,
            metrics=metrics if metrics is not None else trainer.default_metrics(),
            early_stopping=None if patience is None else EarlyStopping(patience),
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            log=log,
            show_progress=not as_json,
        )
        trainer.export(out, average=average is not None)
        if adapter is not None:
            trainer.export_adapter(adapter, average=average is not None)
        if plot is not None and log is not None:
            plot_curves(log, plot)
        seconds = time.perf_counter() - started
        if as_json:
            print_json(
                {"out": str(out), "seconds": seconds, "updates": trainer.state.step, "epochs": history}
            )
        else:
            _print_history(f"{out}: {trainer.state.step} updates in {seconds:.1f} s", history)


@app.command()
def artifacts(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    loss: LossName,
    labels: Labels = None,
    output: Output = None,
    loss_option: LossOptions = None,
    optimizer: OptimizerName = "adamw",
    optimizer_option: OptimizerOptions = None,
    parameters: Parameters = None,
    frozen: Frozen = None,
    clip_norm: ClipNorm = None,
    average: Average = None,
    reinitialize: Reinitialize = False,
    seed: Seed = 0,
    no_training_mode: NoTrainingMode = False,
    as_json: Json = False,
) -> None:
    """Write training, optimizer, step and evaluation models for a loop in any language.

    The folder holds the parameters too, and artifacts.json, which says which input is what.
    """
    with errors(as_json):
        written = write_artifacts(
            out,
            model,
            loss_of(loss, loss_option),
            optimizer_of(optimizer, optimizer_option),
            parameters,
            frozen=frozen,
            output=output,
            target=labels,
            clip_norm=clip_norm,
            average=average,
            training_mode=not no_training_mode,
            reinitialize=seed if reinitialize else None,
        )
        if as_json:
            print_json(written.description)
            return
        stdout.print(
            f"{escape(str(out))}: {len(written.description['parameters'])} parameters", highlight=False
        )
        table = Table(box=None, pad_edge=False)
        for column in ("file", "what it is"):
            table.add_column(column)
        for row in _FILES:
            table.add_row(*row)
        stdout.print(table)


_FILES = (
    ("step.onnx", "forward, loss, gradients and update: run, swap, repeat"),
    ("training.onnx", "forward, loss and gradients"),
    ("optimizer.onnx", "the update out of gradients"),
    ("evaluation.onnx", "forward and loss, as in use"),
    ("parameters.safetensors", "parameters and running statistics at the start"),
    ("artifacts.json", "which input is what, and which output is its next value"),
)


@app.command()
def loop(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that the command artifacts wrote.")],
) -> None:
    """Print a minimal training loop in Python that needs nothing but onnxruntime and numpy."""
    with errors(as_json=False):
        typer.echo(loop_program(read_artifacts(folder)), nl=False)


def _schedule(name: str, warmup: int, decay_every: int | None) -> Schedule:
    if (name == "step") != (decay_every is not None):
        raise InputError("--schedule step and --decay-every UPDATES belong together; give both or neither")
    if decay_every is not None:
        return StepDecay(decay_every, warmup=warmup)
    if name not in SCHEDULES:
        raise InputError(f"--schedule {name} is none of {', '.join(SCHEDULES)} and step")
    return SCHEDULES[name](warmup=warmup)


def _precision(name: str) -> Precision:
    for known in get_args(Precision):
        if name == known:
            return cast(Precision, known)
    raise InputError(f"--precision {name} is none of {', '.join(PRECISIONS)}")


def _print_history(title: str, history: list[dict[str, object]]) -> None:
    stdout.print(escape(title), highlight=False)
    table = Table(box=None, pad_edge=False)
    last = history[-1] if history else {}
    evaluated = last.get("evaluation")
    names = list(evaluated) if isinstance(evaluated, dict) else []
    for column in ("epoch", "updates", "loss", *(f"eval {name}" for name in names)):
        table.add_column(column, justify="right")
    for line in history:
        of_line = line["evaluation"] if isinstance(line["evaluation"], dict) else {}
        numbers = [f"{of_line[name]:.4g}" if name in of_line else "" for name in names]
        table.add_row(str(line["epoch"]), str(line["step"]), f"{line['loss']:.4g}", *numbers)
    stdout.print(table)
