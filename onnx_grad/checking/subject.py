"""The model under check in the precisions it is evaluated in, with its gradient graph in each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.checking.cutting import CutModel, cut_model, named_values
from onnx_grad.checking.evaluators import Candidate
from onnx_grad.checking.precision import PrecisionError, to_precision
from onnx_grad.errors import NoPathWarning, OnnxGradError
from onnx_grad.lowering import holds_training_operators
from onnx_grad.prepare import prepare
from onnx_grad.prepare.expand import expand_local_functions
from onnx_grad.prepare.infer import infer
from onnx_grad.prepare.load import Model, load
from onnx_grad.prepare.validate import opset_of, validate
from onnx_grad.selection import Names
from onnx_grad.transforms import lower, vjp

# ONNX Runtime has no kernels for the forms that some operators had before this opset.
OLDEST_RUNNABLE_OPSET = 7

_EPSILONS = {
    ir.DataType.DOUBLE: 2.0**-52,
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}

# From this IR version on, an initializer need not be an input too; lifting takes them out of the inputs.
OLDEST_IR_VERSION = 4


@dataclass(frozen=True)
class InPrecision:
    """The model with all its floats of one type.

    Attributes:
        model: The model.
        held: Nodes that round to another precision, as text.
        dtype: The type; `None` where the model could not be converted and is as it was.
    """

    model: ir.Model
    held: tuple[str, ...] = ()
    dtype: ir.DataType | None = None

    def cut(self, at: Sequence[str], outputs: Sequence[str]) -> CutModel:
        """The model with the tensors `at` as inputs and `outputs` as outputs."""
        return cut_model(self.model, at, outputs)

    def gradient(self, wrt: Sequence[str], of: Sequence[str], stop: Sequence[str]) -> Candidate:
        """The gradient graph of the model in this precision."""
        with warnings.catch_warnings():
            # The gradient graph in the model's own type has warned already.
            warnings.simplefilter("ignore", NoPathWarning)
            gradient = vjp(self.model, wrt, of, stop=stop)
        # Some function bodies, such as that of LayerNormalization, compute in float32 whatever they are
        # given.
        if self.dtype is None:
            return Candidate(gradient)
        converted = to_precision(gradient, self.dtype)
        return Candidate(converted.model, tuple(dict.fromkeys((*self.held, *converted.held))))


@dataclass(frozen=True)
class Subject:
    """A model under check.

    Attributes:
        model: The forward model as it was given, its functions inlined, its types inferred.
        gradient: Its gradient graph, in its own type.
        wrt: The tensors that there are gradients for.
        of: The tensors that are differentiated.
        stop: The tensors that count as constants.
        lifted: Whether `model` had to be lifted to a newer opset before anything can run it.
    """

    model: ir.Model
    gradient: ir.Model
    wrt: tuple[str, ...]
    of: tuple[str, ...]
    stop: tuple[str, ...]
    lifted: bool

    @classmethod
    def of_model(cls, model: Model, wrt: Names, of: Names, stop: Names) -> Subject:
        """Load `model` and transform it.

        Raises:
            OnnxGradError: As `onnx_grad.vjp`.
        """
        light = load(model)
        validate(light.proto)
        source = ir.from_proto(light.proto)
        light.attach(source)
        if holds_training_operators(source):
            return cls.of_model(lower(source), wrt, of, stop)
        lifted = (opset_of(light.proto) or OLDEST_RUNNABLE_OPSET) < OLDEST_RUNNABLE_OPSET
        if lifted:
            forward = prepare(model).model
            forward.ir_version = max(forward.ir_version, OLDEST_IR_VERSION)
        else:
            light.proto = infer(expand_local_functions(light.proto))
            forward = ir.from_proto(light.proto)
            light.attach(forward)
        gradient = vjp(source, wrt, of, stop=stop)
        names = [stop] if isinstance(stop, str) else list(stop or ())
        return cls(
            forward,
            gradient,
            tuple(gradient_names(gradient)),
            tuple(cotangent_names(gradient)),
            tuple(names),
            lifted,
        )

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of a tensor of the model."""
        dtype = self._values[name].dtype
        return np.dtype((dtype or ir.DataType.FLOAT).numpy())

    def epsilon(self, value: ir.Value) -> float:
        """The relative size of a unit in the last place of what a node of the model gives, 0 for others."""
        node = value.producer()
        names = [output.name for output in node.outputs] if node is not None else []
        types = [self._values[name].dtype for name in names if name in self._values]
        found = next((dtype for dtype in types if dtype in _EPSILONS), None)
        return 0.0 if found is None else _EPSILONS[found]

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return named_values(self.model.graph)

    @cached_property
    def float64(self) -> InPrecision | str:
        """The model in float64, or why that cannot be."""
        return self._in_precision(ir.DataType.DOUBLE)

    @cached_property
    def float32(self) -> InPrecision:
        """The model in float32; as it is where an operator without a public specification has only that."""
        version = self._in_precision(ir.DataType.FLOAT)
        return InPrecision(self.model) if isinstance(version, str) else version

    @cached_property
    def gradient_in_float64(self) -> Candidate | str:
        """The gradient graph of the model in float64, or why there is none."""
        return self.float64 if isinstance(self.float64, str) else self._gradient_in(self.float64)

    @cached_property
    def gradient_in_float32(self) -> Candidate:
        """The gradient graph of the model in float32, or the one in the model's own type."""
        version = self._gradient_in(self.float32)
        return Candidate(self.gradient) if isinstance(version, str) else version

    def _in_precision(self, dtype: ir.DataType) -> InPrecision | str:
        try:
            converted = to_precision(self.model, dtype)
        except PrecisionError as error:
            return str(error)
        return InPrecision(converted.model, converted.held, dtype)

    def _gradient_in(self, version: InPrecision) -> Candidate | str:
        try:
            return version.gradient(self.wrt, self.of, self.stop)
        except OnnxGradError as error:
            return f"its gradient cannot be built: {error}"


def gradient_names(model: ir.Model) -> dict[str, str]:
    """Which output of a gradient graph holds the gradient of which tensor."""
    names: dict[str, str] = json.loads(model.metadata_props[METADATA_PREFIX + "gradients"])
    return names


def cotangent_names(model: ir.Model) -> dict[str, str]:
    """Which input of a gradient graph takes the cotangent of which tensor."""
    names: dict[str, str] = json.loads(model.metadata_props[METADATA_PREFIX + "cotangents"])
    return names
