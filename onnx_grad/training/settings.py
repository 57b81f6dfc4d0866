"""The settings of a training: whether they make sense, and whether they are those of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_grad.errors import CheckpointError, InputError


def check_numbers(learning_rate: float, accumulation: int, batch_size: int, seed: int) -> None:
    """See that the numbers of a trainer are in their ranges.

    Raises:
        InputError: One is not.
    """
    if not (learning_rate >= 0.0 and math.isfinite(learning_rate)):
        raise InputError(f"learning_rate={learning_rate} is no learning rate")
    for name, number, least in (
        ("accumulation", accumulation, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if number < least:
            raise InputError(f"{name}={number} is less than {least}")


def check_same(path: Path, stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """See that a checkpoint was written with the same settings.

    Raises:
        CheckpointError: It was not.
    """
    for key, value in own.items():
        if stored.get(key) != value:
            raise CheckpointError(
                f"the checkpoint '{path}' belongs to another training: its {key} is "
                f"{_shortened(stored.get(key))}, here it is {_shortened(value)}"
            )


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} …"
