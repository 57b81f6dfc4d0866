"""The options that the training commands share, and what they mean."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from onnx_grad.errors import InputError, UnknownNameError
from onnx_grad.training import LOSSES, OPTIMIZERS, Loss, Optimizer

LossName = Annotated[
    str,
    typer.Option(
        "--loss",
        metavar="LOSS",
        help=f"What training makes small: {', '.join(LOSSES)}; an output of the model that is the loss; or "
        "an .onnx file with a model over its outputs.",
    ),
]
LossOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--loss-option",
        metavar="NAME=VALUE",
        help="An option of the loss: label_smoothing=0.1; repeat for more.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels", metavar="NAME", help="The array with the targets of the loss. Default: <output>_target."
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="NAME", help="The output that is compared, where there are several."),
]
OptimizerName = Annotated[
    str, typer.Option("--optimizer", metavar="OPTIMIZER", help=f"One of {', '.join(OPTIMIZERS)}.")
]
OptimizerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--optimizer-option",
        metavar="NAME=VALUE",
        help="An option of the optimizer: weight_decay=0.1, momentum=0.9; repeat for more.",
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameters",
        metavar="PATTERN",
        help="Train only weights of such names; repeat for more. Default: all.",
    ),
]
Frozen = Annotated[
    list[str] | None,
    typer.Option("--frozen", metavar="PATTERN", help="Do not train weights of such names; repeat for more."),
]
ClipNorm = Annotated[
    float | None, typer.Option("--clip-norm", metavar="NORM", help="Scale gradients down to this norm.")
]
Average = Annotated[
    float | None,
    typer.Option(
        "--average", metavar="DECAY", help="Keep an exponential moving average of the weights: 0.999."
    ),
]
NoTrainingMode = Annotated[
    bool,
    typer.Option(
        "--no-training-mode",
        help="Leave Dropout and BatchNormalization as they are when the model is in use.",
    ),
]
Reinitialize = Annotated[
    bool, typer.Option("--reinitialize", help="Start from fresh random weights, drawn by --seed.")
]
Seed = Annotated[int, typer.Option("--seed", help="What order, random masks and fresh weights are drawn by.")]

Chosen = TypeVar("Chosen", Loss, Optimizer)


def loss_of(name: str, options: list[str] | None) -> str | Loss:
    """The loss that is meant."""
    return _chosen("--loss-option", LOSSES, name, options)


def optimizer_of(name: str, options: list[str] | None) -> str | Optimizer:
    """The optimizer that is meant."""
    return _chosen("--optimizer-option", OPTIMIZERS, name, options)


def _chosen(
    flag: str, kinds: Mapping[str, type[Chosen]], name: str, options: list[str] | None
) -> str | Chosen:
    if not options:
        return name
    if name not in kinds:
        raise UnknownNameError.near(flag.removesuffix("-option"), name, kinds, "entry")
    fields = [field.name for field in dataclasses.fields(kinds[name])]
    return kinds[name](**dict(_assigned(flag, option, fields) for option in options))


def _assigned(flag: str, text: str, fields: list[str]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in fields:
        raise InputError(
            f"{flag} '{text}' is not understood; there are: {', '.join(fields)}, as in NAME=VALUE"
        )
    try:
        parsed = json.loads(value)
    except ValueError as error:
        if name != "reduction":
            raise InputError(f"{flag} '{text}': '{value}' is no number or list") from error
        parsed = value
    return name, tuple(parsed) if isinstance(parsed, list) else parsed
