"""What evaluates a model: ONNX Runtime, or the ONNX reference evaluator with operators of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.float64_operators import FLOAT32_INSIDE, REPLACEMENTS
from onnx_grad.errors import InputError
from onnx_grad.sessions import create_session, runtime_errors, runtime_message, without_external_data

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = Mapping[str, Any]
EvaluatorName: TypeAlias = Literal["onnxruntime-float64", "reference-float64", "onnxruntime-float32"]

EVALUATORS: tuple[EvaluatorName, ...] = (
    "onnxruntime-float64",
    "reference-float64",
    "onnxruntime-float32",
)

# Whatever the reference evaluator raises for an operator it lacks or mishandles: it has no exceptions of
# its own.
_REFERENCE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

_SILENT = 4


class Evaluator(Protocol):
    """A compiled model: arrays in, all outputs in float64 out."""

    name: EvaluatorName

    @property
    def precision(self) -> Literal["float64", "float32"]:
        """The precision that the evaluation really has."""

    def converted(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the model reads, in the types it reads them in."""

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate the model; floats may be given in any precision."""


@dataclass(frozen=True)
class Candidate:
    """A model in a precision to be evaluated in.

    Attributes:
        model: The model, all of it in float64, or in float32.
        held: Nodes that stay in lower precision inside a float64 model, as text.
    """

    model: ir.Model
    held: tuple[str, ...] = ()


class OnnxRuntimeEvaluator:
    """ONNX Runtime on the CPU."""

    def __init__(self, name: EvaluatorName, candidate: Candidate) -> None:
        self.name = name
        self._exact = name == "onnxruntime-float64" and not candidate.held
        self._session = create_session(candidate.model, log_severity_level=_SILENT)
        self._inputs = {value.name or "": value for value in candidate.model.graph.inputs}
        self._outputs = [value.name or "" for value in candidate.model.graph.outputs]

    @property
    def precision(self) -> Literal["float64", "float32"]:
        """Float32 where a node of a float64 model is held in it."""
        return "float64" if self._exact else "float32"

    def converted(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the model reads, in the types it reads them in."""
        return {n: _converted(v, self._inputs[n]) for n, v in feeds.items() if n in self._inputs}

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate the model.

        Raises:
            InputError: ONNX Runtime fails with these inputs.
        """
        try:
            outputs = self._session.run(self._outputs, self.converted(feeds))
        except runtime_errors() as error:
            raise InputError(f"ONNX Runtime cannot evaluate the model: {runtime_message(error)}") from error
        return _widened(self._outputs, outputs)


class OnnxReferenceEvaluator:
    """The ONNX reference evaluator, with float64 replacements for some of its operators."""

    name: EvaluatorName = "reference-float64"

    def __init__(self, candidate: Candidate) -> None:
        self._exact = not candidate.held
        nodes = candidate.model.graph.all_nodes()
        lossy = sorted({node.op_type for node in nodes} & FLOAT32_INSIDE)
        if lossy and self._exact:
            raise InputError(f"it computes {', '.join(lossy)} in float32")
        self._inputs = {value.name or "": value for value in candidate.model.graph.inputs}
        self._outputs = [value.name or "" for value in candidate.model.graph.outputs]
        proto = ir.to_proto(without_external_data(candidate.model))
        try:
            self._evaluator = ReferenceEvaluator(proto, new_ops=list(REPLACEMENTS))
        except _REFERENCE_ERRORS as error:
            raise InputError(f"it cannot load the model: {first_line(error)}") from error

    @property
    def precision(self) -> Literal["float64", "float32"]:
        """Float32 where a node is held in it."""
        return "float64" if self._exact else "float32"

    def converted(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the model reads, in the types it reads them in."""
        return {n: _converted(v, self._inputs[n]) for n, v in feeds.items() if n in self._inputs}

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate the model.

        Raises:
            InputError: The reference evaluator fails with these inputs.
        """
        try:
            with np.errstate(all="ignore"):
                outputs = self._evaluator.run(self._outputs, self.converted(feeds))
        except _REFERENCE_ERRORS as error:
            raise InputError(f"it fails: {first_line(error)}") from error
        return _widened(self._outputs, outputs)


def _converted(value: Any, declared: ir.Value) -> Any:
    """`value` in the float type that the model declares."""
    if isinstance(value, list):
        return [_converted(item, declared) for item in value]
    floats = {ir.DataType.DOUBLE: np.float64, ir.DataType.FLOAT: np.float32}
    wanted = floats.get(declared.dtype) if declared.dtype is not None else None
    if wanted is None or not isinstance(value, np.ndarray):
        return value
    return value.astype(wanted)


def _widened(names: list[str], outputs: Any) -> dict[str, Array]:
    return {
        name: value.astype(np.float64) if _is_low_precision(value) else value
        for name, value in zip(names, outputs, strict=True)
    }


def _is_low_precision(value: Any) -> bool:
    if not isinstance(value, (np.ndarray, np.generic)):
        return False
    return value.dtype != np.float64 and (value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16)


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
