"""What an evaluation tells besides the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnx_grad.errors import InputError, UnknownNameError

Array: TypeAlias = np.ndarray[Any, Any]
MetricFunction: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, Array]], float]
MetricSpec: TypeAlias = "str | MetricFunction"


@dataclass(frozen=True)
class Comparison:
    """The output and the target that metrics of a name compare.

    Attributes:
        output: The name of the output.
        target: The name of the input with its target.
        classes: The axis of the classes, for integer labels.
        ignored: The label that does not count.
    """

    output: str
    target: str
    classes: int = 1
    ignored: int | None = None


def accuracy(prediction: Array, target: Array, comparison: Comparison) -> tuple[float, float]:
    """How many labels are the class of the largest output, and how many count.

    Float targets count as right where they are on the same side of a half as the logit is of zero.
    """
    if target.dtype.kind == "f":
        right = (prediction > 0.0) == (target > 0.5)
        return float(right.sum()), float(right.size)
    right = np.argmax(prediction, axis=comparison.classes if prediction.ndim > 1 else 0) == target
    counts = target != comparison.ignored if comparison.ignored is not None else np.ones_like(right)
    return float((right & counts).sum()), float(counts.sum())


def mean_absolute_error(prediction: Array, target: Array, comparison: Comparison) -> tuple[float, float]:
    """Σ |x − t|, and the number of elements."""
    del comparison
    return float(np.abs(prediction - target, dtype=np.float64).sum()), float(target.size)


def mean_squared_error(prediction: Array, target: Array, comparison: Comparison) -> tuple[float, float]:
    """Σ (x − t)², and the number of elements."""
    del comparison
    return float(np.square(prediction - target, dtype=np.float64).sum()), float(target.size)


METRICS: Mapping[str, Callable[[Array, Array, Comparison], tuple[float, float]]] = {
    "accuracy": accuracy,
    "mean_absolute_error": mean_absolute_error,
    "mean_squared_error": mean_squared_error,
}


class Meter:
    """Means of metrics over the batches of an evaluation.

    Args:
        metrics: Names of metrics, or functions from outputs and batch, both by name, to a number; the numbers
            of batches are averaged by the number of their examples.
        comparison: What metrics of a name compare.

    Raises:
        UnknownNameError: There is no metric of a name.
        InputError: A name needs an output with a target, and there is none.
    """

    def __init__(self, metrics: Sequence[MetricSpec], comparison: Comparison | None) -> None:
        for metric in metrics:
            if isinstance(metric, str) and metric not in METRICS:
                raise UnknownNameError.near("metrics", metric, METRICS, "metric")
            if isinstance(metric, str) and comparison is None:
                raise InputError(
                    f"metrics: '{metric}' compares an output with its target, and this loss has none; give a "
                    "function of outputs and batch"
                )
        self._metrics, self._comparison = metrics, comparison
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, loss: float, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> None:
        """Take a batch into account."""
        examples = float(next((len(array) for array in batch.values() if array.ndim), 1))
        self._add("loss", loss * examples, examples)
        for metric in self._metrics:
            if isinstance(metric, str):
                compared = self._comparison
                if compared is None:
                    raise InputError(f"metrics: '{metric}' has nothing to compare")
                prediction, target = outputs[compared.output], batch[compared.target]
                self._add(metric, *METRICS[metric](prediction, target, compared))
            else:
                self._add(metric.__name__, float(metric(outputs, batch)) * examples, examples)

    def means(self) -> dict[str, float]:
        """The means over all batches."""
        return {name: total / max(self._counts[name], 1.0) for name, total in self._sums.items()}

    def _add(self, name: str, total: float, count: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count
