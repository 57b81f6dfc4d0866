"""Batches: from files, arrays and iterables, in an order that a seed and the epoch determine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnx_grad.array_files import read_arrays
from onnx_grad.errors import InputError
from onnx_grad.signature import InputSpec, dtype_of

Array: TypeAlias = np.ndarray[Any, Any]
Batch: TypeAlias = "Mapping[str, Any]"
Data: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, Any] | Iterable[Batch] | Callable[[int], Iterable[Batch]]"
)


class Batches(ABC):
    """A data set, given out in batches."""

    @abstractmethod
    def epoch(self, number: int) -> Iterator[dict[str, Array]]:
        """The batches of an epoch; the same number gives the same batches."""

    @abstractmethod
    def count(self) -> int | None:
        """How many batches an epoch has, where that is known before."""


class ArrayBatches(Batches):
    """Examples in arrays, which have them along their first axes.

    Args:
        arrays: The arrays by the names of the graph inputs.
        size: The examples of a batch; the last one of an epoch may have fewer.
        seed: The order of an epoch is drawn by it and the number of the epoch; `None` keeps that of the
            arrays.
    """

    def __init__(self, arrays: Mapping[str, Array], size: int, seed: int | None) -> None:
        self._arrays, self._size, self._seed = arrays, size, seed
        self.examples = len(next(iter(arrays.values())))

    def epoch(self, number: int) -> Iterator[dict[str, Array]]:
        order = np.arange(self.examples)
        if self._seed is not None:
            order = np.random.default_rng([self._seed, number]).permutation(self.examples)
        for start in range(0, self.examples, self._size):
            rows = order[start : start + self._size]
            yield {name: array[rows] for name, array in self._arrays.items()}

    def count(self) -> int:
        return -(-self.examples // self._size)


class StreamedBatches(Batches):
    """Batches that an iterable gives anew in each epoch.

    Args:
        source: An iterable that can be gone through again, or a function from the number of an epoch to one.
        specs: What the graph expects of its inputs.
    """

    def __init__(
        self, source: Iterable[Batch] | Callable[[int], Iterable[Batch]], specs: Mapping[str, InputSpec]
    ) -> None:
        self._source, self._specs = source, specs

    def epoch(self, number: int) -> Iterator[dict[str, Array]]:
        batches = self._source(number) if callable(self._source) else self._source
        for batch in batches:
            if not isinstance(batch, Mapping):
                raise InputError(
                    f"data: a batch is a dict of arrays named after the inputs, not {type(batch).__name__}"
                )
            yield chosen(batch, self._specs)

    def count(self) -> int | None:
        return len(self._source) if isinstance(self._source, Sequence) else None


def batches_of(data: Data, specs: Mapping[str, InputSpec], size: int, seed: int | None) -> Batches:
    """The batches of `data`.

    Args:
        data: The path of an .npz file, arrays by name, an iterable of batches, or a function from the number
            of an epoch to one.
        specs: What the graph expects of its inputs.
        size: The examples of a batch, for files and arrays.
        seed: See `ArrayBatches`.

    Raises:
        InputError: The data is empty, or does not fit the inputs.
    """
    if size < 1:
        raise InputError(f"batch_size={size} is no number of examples")
    if isinstance(data, (str, os.PathLike)):
        data, _ = read_arrays(Path(data), list(specs))
    if isinstance(data, Mapping):
        return ArrayBatches(_examples(data, specs), size, seed)
    if isinstance(data, Iterator):
        raise InputError(
            "data: an iterator can be gone through once only; give a list, or a function from the number of "
            "the epoch to an iterable"
        )
    if not callable(data) and not isinstance(data, Iterable):
        raise InputError(
            f"data: {type(data).__name__} is no data; give the path of an .npz file, a dict of arrays, an "
            "iterable of batches, or a function from the number of the epoch to one"
        )
    return StreamedBatches(data, specs)


def _examples(data: Mapping[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, Array]:
    arrays = chosen(data, specs)
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InputError(
                f"data: '{name}' is a single number; its first axis has to be that of the examples"
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise InputError(f"data: the arrays have different numbers of examples: {listing}")
    if not next(iter(lengths.values())):
        raise InputError("data: the data set is empty: its arrays have no examples")
    return arrays


def chosen(given: Mapping[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, Array]:
    """The arrays that the graph takes, in its types; others are left out.

    Raises:
        InputError: One is missing, or its numbers do not fit the type of the input.
    """
    missing = [str(spec.name) for spec in specs.values() if spec.required and spec.name not in given]
    if missing:
        expected = ", ".join(f"'{name}' ({specs[name]})" for name in missing)
        raise InputError(
            f"data: there is no array for {expected}; there are {', '.join(map(repr, given)) or 'none'}"
        )
    return {name: _converted(given[name], spec) for name, spec in specs.items() if name in given}


def _converted(value: Any, spec: InputSpec) -> Array:
    """`value` as an array of the type of its input: wider or narrower numbers of the same kind are taken."""
    array = np.asarray(value)
    given = dtype_of(array)
    if spec.dtype is None or given == spec.dtype:
        return array
    wanted = spec.dtype.numpy()
    floats = given.is_floating_point() and spec.dtype.is_floating_point()
    if not floats and not (given.is_integer() and spec.dtype.is_integer()):
        raise InputError(
            f"data: '{spec.name}' holds {array.dtype}, and the input is {spec}; convert it with "
            f".astype('{wanted}')"
        )
    return array.astype(wanted)
