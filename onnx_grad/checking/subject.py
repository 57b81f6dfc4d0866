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
from onnx_grad.prepare import prepare
from onnx_grad.prepare.expand import expand_local_functions
from onnx_grad.prepare.infer import infer
from onnx_grad.prepare.load import Model, load
from onnx_grad.prepare.validate import opset_of, validate
from onnx_grad.runtime import read_model
from onnx_grad.selection import Names
from onnx_grad.transforms import vjp

# ONNX Runtime has no kernels for the forms that some operators had before this opset.
OLDEST_RUNNABLE_OPSET = 7


@dataclass(frozen=True)
class InPrecision:
    """The model with all its floats of one type.

    Attributes:
        model: The model.
        held: Nodes that stay in another precision, as text.
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
        lifted = (opset_of(light.proto) or OLDEST_RUNNABLE_OPSET) < OLDEST_RUNNABLE_OPSET
        if lifted:
            forward = prepare(model).model
        else:
            light.proto = infer(expand_local_functions(light.proto))
            forward = ir.from_proto(light.proto)
            light.attach(forward)
        source = model if isinstance(model, ir.Model) else read_model(model)
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

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return named_values(self.model.graph)

    def in_precision(self, dtype: ir.DataType) -> InPrecision | str:
        """The model with all its floats of type `dtype`, or why that cannot be."""
        try:
            converted = to_precision(self.model, dtype)
        except PrecisionError as error:
            return str(error)
        return InPrecision(converted.model, converted.held, dtype)

    def gradient_in(self, version: InPrecision | str) -> Candidate | str:
        """The gradient graph of one version of the model, or why there is none."""
        if isinstance(version, str):
            return version
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
