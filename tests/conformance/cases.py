"""The backend cases that come with onnx: models of one operator, mostly, each with its data."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx.backend.test.loader
import onnx.reference.ops.op_pool_common

from onnx_grad import registry
from onnx_grad.prepare.validate import all_nodes

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)
# Larger initializers than this are left alone: along the inputs the same rules are checked.
LARGEST_WEIGHT = 4096

# Operands without a derivative that no rule declares: the scales of what becomes Resize.
FROZEN = {("Upsample", 1)}

_EXPANDED = "_expanded"


@dataclass(frozen=True)
class Case:
    """A model with the data that it is to be run with.

    Attributes:
        name: Its name in onnx.
        operator: The operator it is about; of an expanded function, the function.
        model: The model.
        points: One or more sets of inputs by name.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    points: tuple[dict[str, Any], ...]

    @functools.cached_property
    def wrt(self) -> list[str]:
        """The float inputs and small float initializers, save those declared to have no derivative."""
        graph = self.model.graph
        inputs = [value.name for value in graph.input if _is_float(value)]
        weights = [
            tensor.name
            for tensor in graph.initializer
            if tensor.data_type in FLOATS and np.prod(tensor.dims) <= LARGEST_WEIGHT
        ]
        return [name for name in dict.fromkeys((*inputs, *weights)) if not self._is_frozen(name)]

    @functools.cached_property
    def of(self) -> list[str]:
        """The float outputs."""
        return [value.name for value in self.model.graph.output if _is_float(value)]

    @property
    def size(self) -> int:
        """How many elements the inputs have."""
        return sum(value.size for value in self.points[0].values() if isinstance(value, np.ndarray))

    def _is_frozen(self, name: str) -> bool:
        """Whether every reader of `name` is declared not to have a derivative with respect to it."""
        readers = [
            (node, index)
            for node in all_nodes(self.model.graph)
            for index, read in enumerate(node.input)
            if read == name
        ]
        return bool(readers) and all(
            (node.op_type, index) in FROZEN or index in registry.lookup(node.domain, node.op_type).frozen
            for node, index in readers
        )


def load_cases(pattern: str = "") -> list[Case]:
    """All cases, or those that match: an operator, a part of a name, or either with wildcards."""
    return [case for case in _all_cases() if _matches(case, pattern)]


@functools.cache
def _all_cases() -> tuple[Case, ...]:
    with warnings.catch_warnings(), np.errstate(all="ignore"), _without_pooling():
        # onnx makes the data of most cases now, overflows on purpose included.
        warnings.simplefilter("ignore")
        given = [case for kind in KINDS for case in onnx.backend.test.loader.load_model_tests(kind=kind)]
    models = {case.name: _model(case) for case in given}
    return tuple(
        Case(case.name, _operator(case.name, models), models[case.name], tuple(_points(case, models)))
        for case in given
    )


def _without_pooling() -> contextlib.AbstractContextManager[object]:
    """Lets onnx expect zeros of poolings: what it expects is read by nobody here, and takes it seconds."""

    def zeros(
        padded: Any, x_shape: Any, kernel: Any, strides: Any, out_shape: Any, *_: Any, **__: Any
    ) -> Any:
        del kernel, strides
        return np.zeros((*x_shape[:2], *out_shape), padded.dtype)

    return mock.patch.object(onnx.reference.ops.op_pool_common, "pool", zeros)


def without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that says nothing of the shapes of its inputs, outputs and values in between."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return copy


def fast_subset(cases: Iterable[Case], each: int = 2) -> list[Case]:
    """The cheapest differentiable cases of every operator, without expanded functions."""
    by_operator: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.wrt and case.of and _EXPANDED not in case.name:
            by_operator[case.operator].append(case)
    return [
        case
        for group in by_operator.values()
        for case in sorted(group, key=lambda case: (case.size < 4, case.size))[:each]
    ]


def _model(case: Any) -> onnx.ModelProto:
    return case.model if case.model is not None else onnx.load(Path(case.model_dir, "model.onnx"))


def _operator(name: str, models: dict[str, onnx.ModelProto]) -> str:
    """The operators of the model, or of the one whose functions were expanded to get it."""
    model = models.get(name.split(_EXPANDED)[0], models[name])
    operators = {node.op_type for node in model.graph.node}
    return " + ".join(sorted(operators - {"Constant"} or operators))


def _points(case: Any, models: dict[str, onnx.ModelProto]) -> Iterator[dict[str, Any]]:
    inputs = models[case.name].graph.input
    if case.data_sets is not None:
        for arrays, _ in case.data_sets:
            yield {value.name: _array(given) for value, given in zip(inputs, arrays, strict=False)}
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        yield {
            value.name: _read(file, value)
            for index, value in enumerate(inputs)
            if (file := folder / f"input_{index}.pb").exists()
        }


def _array(given: Any) -> Any:
    """Data of types that numpy lacks is given as a tensor message."""
    return onnx.numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else given


def _read(file: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        sequence = onnx.SequenceProto.FromString(file.read_bytes())
        return onnx.numpy_helper.to_list(sequence)
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in FLOATS


def _matches(case: Case, pattern: str) -> bool:
    if any(character in pattern for character in "*?["):
        return fnmatch.fnmatchcase(case.name, pattern) or fnmatch.fnmatchcase(case.operator, pattern)
    return pattern in case.name or pattern == case.operator
