"""Calling a gradient model: named arrays in, named values and gradients out.

numpy arrays give numpy arrays back. `onnxruntime.OrtValue`s are bound where they lie and give `OrtValue`s
back on the same device, so that nothing passes through the host's memory.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.errors import InputError, ModelError
from onnx_grad.prepare.load import Model, load
from onnx_grad.prepare.validate import validate
from onnx_grad.registry import Quantization
from onnx_grad.selection import Names
from onnx_grad.sessions import Provider, create_session, onnxruntime, runtime_errors, runtime_message
from onnx_grad.signature import (
    Bound,
    InputSpec,
    as_array,
    check_names,
    dtype_name,
    dtype_of,
    quoted,
    shape_text,
)
from onnx_grad.transforms import vjp

Array: TypeAlias = np.ndarray[Any, Any]
Feed: TypeAlias = Any  # a numpy array, a number, a nested list, or an onnxruntime.OrtValue


@dataclass(frozen=True)
class GradientResult:
    """What one call of a `GradientFunction` gives.

    Attributes:
        values: The outputs of the model by name.
        gradients: For each name in `wrt`, the gradient, of the shape and dtype of that tensor.
    """

    values: Mapping[str, Any]
    gradients: Mapping[str, Any]


class GradientFunction:
    """A model together with its gradients, compiled once by ONNX Runtime.

    For outputs y and cotangents c it computes y and, for each x in `wrt`, dx = sum over y of c . dy/dx.

    ```python
    f = GradientFunction("model.onnx", wrt="image", of="loss")
    result = f(image=image)
    result.values["loss"], result.gradients["image"]
    ```

    Args:
        model: A path, an `onnx.ModelProto` or an `ir.Model`; it is not changed.
        wrt: What to differentiate with respect to, as for `onnx_grad.vjp`.
        of: What to differentiate, as for `onnx_grad.vjp`.
        stop: Tensors that count as constants.
        quantization: What is done where numbers are rounded, as for `onnx_grad.vjp`.
        providers: ONNX Runtime's ordered list of execution providers, passed on as it is; `None` is the CPU.
        provider_options: One mapping for each provider, passed on as it is.
        session_options: An `onnxruntime.SessionOptions`, passed on as it is.
        log_severity_level: What ONNX Runtime writes to stderr, from 0 (all) to 4 (fatal errors), where there
            are no `session_options`.

    Raises:
        ModelError, UnknownNameError, UnsupportedOpError, NotDifferentiableError: As `onnx_grad.vjp`.
        RuntimeUnavailableError: ONNX Runtime, or a provider that was asked for, is not there or does not
            load.
    """

    def __init__(
        self,
        model: Model,
        wrt: Names = None,
        of: Names = None,
        *,
        stop: Names = (),
        quantization: Quantization | None = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
        log_severity_level: int | None = None,
    ) -> None:
        gradient_model = vjp(read_model(model), wrt, of, stop=stop, quantization=quantization)
        self._as_proto = not isinstance(model, ir.Model)
        self._compile(
            gradient_model,
            providers=providers,
            provider_options=provider_options,
            session_options=session_options,
            log_severity_level=log_severity_level,
        )

    @classmethod
    def from_gradient_model(
        cls,
        model: Model,
        *,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
        log_severity_level: int | None = None,
    ) -> GradientFunction:
        """Run a model that `onnx_grad.vjp` or `onnx_grad.grad` made before, from a file for example.

        Args:
            model: The transformed model. Its metadata says which of its outputs are gradients.
            providers: As for the class.
            provider_options: As for the class.
            session_options: As for the class.
            log_severity_level: As for the class.

        Raises:
            ModelError: The model was not made by `vjp` or `grad`.
            RuntimeUnavailableError: ONNX Runtime, or a provider that was asked for, is not there or does
                not load.
        """
        function = cls.__new__(cls)
        function._as_proto = not isinstance(model, ir.Model)
        function._compile(
            read_model(model),
            providers=providers,
            provider_options=provider_options,
            session_options=session_options,
            log_severity_level=log_severity_level,
        )
        return function

    def _compile(self, model: ir.Model, **settings: Any) -> None:
        self._model = model
        self._gradients = _mapping(model, "gradients")
        self._cotangents = _mapping(model, "cotangents")
        self._specs = {spec.name: spec for spec in map(InputSpec.of, model.graph.inputs)}
        self.session = create_session(model, **settings)
        self._outputs = [value.name or "" for value in model.graph.outputs]
        exchanged = (*model.graph.inputs, *model.graph.outputs)
        self._numpy_knows_all = all(map(_numpy_knows, exchanged))

    @property
    def model(self) -> onnx.ModelProto | ir.Model:
        """The gradient model: an `ir.Model` if one was given, else an `onnx.ModelProto`."""
        return ir.to_proto(self._model) if self._as_proto else self._model

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs of the model, in its order, without the cotangents."""
        cotangents = set(self._cotangents.values())
        return tuple(name for name in self._specs if name not in cotangents)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs of the model, in its order, without the gradients."""
        gradients = set(self._gradients.values())
        return tuple(name for name in self._outputs if name not in gradients)

    @property
    def cotangent_names(self) -> tuple[str, ...]:
        """The tensors that are differentiated and take a cotangent: the names in `of`."""
        return tuple(self._cotangents)

    @property
    def gradient_names(self) -> tuple[str, ...]:
        """The tensors that there are gradients for: the names in `wrt`."""
        return tuple(self._gradients)

    @property
    def gradient_outputs(self) -> Mapping[str, str]:
        """For each name in `wrt`, the name of the graph output that is its gradient."""
        return dict(self._gradients)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers the session runs on, in order of precedence."""
        return tuple(self.session.get_providers())

    def __repr__(self) -> str:
        return (
            f"GradientFunction(inputs: {quoted(self.input_names)}; outputs: {quoted(self.output_names)}; "
            f"cotangents: {quoted(self.cotangent_names)}; gradients: {quoted(self.gradient_names)}; "
            f"providers: {quoted(self.providers)})"
        )

    def __call__(
        self,
        inputs: Mapping[str, Feed] | None = None,
        /,
        *,
        cotangents: Mapping[str, Feed] | None = None,
        **named_inputs: Feed,
    ) -> GradientResult:
        """Evaluate the model and its gradients.

        Args:
            inputs: The inputs of the model by name. A cotangent may also be given here under the name of
                its graph input (`y_grad`), as a file of all inputs does.
            cotangents: For each name in `of`, an array of its shape and dtype: the derivative of whatever
                is wanted with respect to it. It can be left out for a tensor of one element, where it is one.
            **named_inputs: More inputs of the model, by keyword.

        Returns:
            The outputs and the gradients: numpy arrays, or `OrtValue`s when any input is one, on its device.

        Raises:
            InputError: An input or cotangent is missing, unknown, or of the wrong shape or dtype; or ONNX
                Runtime cannot evaluate the model with these inputs.
        """
        feeds = self._feeds({**(inputs or {}), **named_inputs}, cotangents or {})
        device = next((_device(feed) for feed in feeds.values() if _is_ort_value(feed)), None)
        try:
            if device is None and self._numpy_knows_all:
                outputs = self.session.run(self._outputs, feeds)
            elif device is None:
                outputs = [_to_array(value) for value in self._run_bound(feeds, ("cpu", 0))]
            else:
                outputs = self._run_bound(feeds, device)
        except runtime_errors() as error:
            given = ", ".join(f"{name}: {_described(feed)}" for name, feed in feeds.items())
            raise InputError(
                f"ONNX Runtime cannot evaluate the model with these inputs: {runtime_message(error)} "
                f"(given: {given})"
            ) from error
        results = dict(zip(self._outputs, outputs, strict=True))
        return GradientResult(
            {name: results[name] for name in self.output_names},
            {name: results[output] for name, output in self._gradients.items()},
        )

    def _feeds(self, given: dict[str, Feed], cotangents: Mapping[str, Feed]) -> dict[str, Feed]:
        """Everything the session is fed, checked against what the model declares."""
        check_names("cotangent", cotangents, self.cotangent_names)
        check_names("input", given, tuple(self._specs))
        for name, cotangent in cotangents.items():
            if self._cotangents[name] in given:
                raise InputError(
                    f"the cotangent of '{name}' is given twice: in cotangents, and as input "
                    f"'{self._cotangents[name]}'"
                )
            given[self._cotangents[name]] = cotangent
        missing = [n for n in self.input_names if self._specs[n].required and n not in given]
        if missing:
            expected = ", ".join(f"'{name}' ({self._specs[name]})" for name in missing)
            raise InputError(f"missing inputs: {expected}")
        bound: dict[str, Bound] = {}
        feeds = {n: _checked(spec, given[n], bound) for n, spec in self._specs.items() if n in given}
        for name, graph_input in self._cotangents.items():
            if graph_input not in feeds:
                feeds[graph_input] = self._cotangent_of_scalar(name, self._specs[graph_input], bound)
        return feeds

    def _cotangent_of_scalar(self, name: str, spec: InputSpec, bound: dict[str, Bound]) -> Array:
        """Ones for a tensor that is certain to have one element."""
        hint = (
            f"give cotangents={{'{name}': …}} with an array of the shape of '{name}' "
            f"(cotangents: {quoted(self.cotangent_names)})"
        )
        size = spec.size(bound)
        if size is None or spec.shape is None or spec.dtype is None:
            raise InputError(
                f"'{name}' is declared as {spec}, so that it is not known before running whether it has one "
                f"element, for which the cotangent would be one; {hint}"
            )
        shape = [bound[d].size if isinstance(d, str) else d for d in spec.shape]
        if size != 1:
            raise InputError(
                f"the cotangent of '{name}' is missing, and it is one only for a single element: "
                f"'{name}' has the shape {shape_text(shape)} here; {hint}"
            )
        return np.ones([d or 0 for d in shape], spec.dtype.numpy())

    def _run_bound(self, feeds: Mapping[str, Feed], device: tuple[str, int]) -> list[Any]:
        """Run with every input bound where it lies and every output allocated on `device`."""
        binding = self.session.io_binding()
        for name, feed in feeds.items():
            if _is_ort_value(feed):
                binding.bind_ortvalue_input(name, feed)
            elif isinstance(feed, np.ndarray) and feed.dtype.isbuiltin != 1:
                binding.bind_ortvalue_input(name, _to_ort_value(feed))
            else:
                binding.bind_cpu_input(name, feed)
        for name in self._outputs:
            binding.bind_output(name, *device)
        self.session.run_with_iobinding(binding)
        return list(binding.get_outputs())


def read_model(model: Model) -> ir.Model:
    """A copy of `model` as an `ir.Model`; external weights stay where they are.

    Raises:
        ModelError: There is no such file, it is no valid ONNX model, or its external data is not where it
            should be.
    """
    light = load(model)
    validate(light.proto)
    result = ir.from_proto(light.proto)
    light.attach(result)
    return result


def is_gradient_model(model: Model) -> bool:
    """Whether `model` was made by `onnx_grad.vjp` or `onnx_grad.grad`, so that it can be run as it is."""
    return _key("gradients") in read_model(model).metadata_props


def _key(name: str) -> str:
    return METADATA_PREFIX + name


def _mapping(model: ir.Model, name: str) -> dict[str, str]:
    text = model.metadata_props.get(_key(name))
    if text is None:
        raise ModelError(
            f"the model has no metadata '{_key(name)}', so it was not made by onnx_grad's vjp or grad; "
            "GradientFunction(model, wrt=…, of=…) transforms it"
        )
    mapping: dict[str, str] = json.loads(text)
    return mapping


def _checked(spec: InputSpec, feed: Feed, bound: dict[str, Bound]) -> Feed:
    """`feed` in the form the session takes, after checking its dtype and shape."""
    if not spec.is_tensor:
        return feed
    if _is_ort_value(feed):
        if not feed.is_tensor():
            raise InputError(f"input '{spec.name}' expects {spec}, not {feed.data_type()}")
        spec.check(ir.DataType(feed.element_type()), feed.shape(), bound)
        return feed
    array = as_array(spec, feed)
    spec.check(dtype_of(array), array.shape, bound)
    return array


def _is_ort_value(feed: Feed) -> bool:
    return isinstance(feed, onnxruntime().OrtValue)


def _device(value: Any) -> tuple[str, int]:
    """The device type and number that an `OrtValue` lies on."""
    return value.device_name(), value.__dlpack_device__()[1]


def _numpy_knows(value: ir.Value) -> bool:
    """Whether ONNX Runtime exchanges tensors of this type as numpy arrays: all but bfloat16 and float8."""
    return value.dtype is None or value.dtype.numpy().isbuiltin == 1


def _to_ort_value(array: Array) -> Any:
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return onnxruntime().OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(dtype_of(array)))


def _to_array(value: Any) -> Any:
    """A numpy array from an `OrtValue` in the host's memory, of any element type."""
    if not value.is_tensor():
        return value.numpy() if value.has_value() else None
    dtype = ir.DataType(value.element_type())
    if dtype is ir.DataType.STRING or dtype.numpy().isbuiltin == 1:
        return value.numpy()
    size = value.tensor_size_in_bytes()
    content = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(content), dtype.numpy()).reshape(value.shape())


def _described(feed: Feed) -> str:
    if isinstance(feed, np.ndarray):
        return f"{dtype_name(dtype_of(feed))}{shape_text(feed.shape)}"
    if _is_ort_value(feed) and feed.is_tensor():
        return f"{dtype_name(ir.DataType(feed.element_type()))}{shape_text(feed.shape())}"
    return type(feed).__name__
