"""Calling a gradient model: named arrays in, named values and gradients out.

numpy arrays give numpy arrays back. `onnxruntime.OrtValue`s are bound where they lie and give `OrtValue`s
back on the same device, so that nothing passes through the host's memory.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.errors import InputError, ModelError
from onnx_grad.prepare.load import Model, load
from onnx_grad.prepare.validate import validate
from onnx_grad.recomputation import Recompute
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
from onnx_grad.transforms import grad, hessian, hvp, jacobian, jvp, vjp

Array: TypeAlias = np.ndarray[Any, Any]
Transform: TypeAlias = Literal["vjp", "grad", "jvp", "hvp", "jacobian", "hessian"]
Feed: TypeAlias = Any  # a numpy array, a number, a nested list, or an onnxruntime.OrtValue

_TRANSFORMS: Mapping[str, Callable[..., ir.Model]] = {
    "vjp": vjp,
    "grad": grad,
    "jvp": jvp,
    "hvp": hvp,
    "jacobian": jacobian,
    "hessian": hessian,
}

# Those that take `recompute`.
_RECOMPUTING = ("vjp", "grad")

# What transforms note in a model: which inputs are directions, and which outputs are derivatives.
_DIRECTIONS = ("cotangents", "tangents")
_DERIVATIVES = {
    "gradients": "gradients",
    "output_tangents": "tangents",
    "hessian_products": "hessian_products",
    "jacobians": "jacobians",
    "hessians": "hessians",
}


@dataclass(frozen=True)
class GradientResult:
    """What one call of a `GradientFunction` gives; empty mappings for what the transform does not.

    Attributes:
        values: The outputs of the model by name.
        gradients: For each name in `wrt`, the gradient, of the shape and dtype of that tensor.
        tangents: For each name in `of`, the tangent, of the shape and dtype of that tensor.
        hessian_products: For each name in `wrt`, the product of the Hessian with the tangents.
        jacobians: For each name y in `of`, then x in `wrt`, ∂y/∂x, of the shape of y, then of x.
        hessians: For each name y in `of`, then x₁ and x₂ in `wrt`, ∂²y/∂x₁∂x₂, of the shapes of all three.
        outputs: Every output of the graph by its name there.
    """

    values: Mapping[str, Any]
    gradients: Mapping[str, Any]
    tangents: Mapping[str, Any] = field(default_factory=dict)
    hessian_products: Mapping[str, Any] = field(default_factory=dict)
    jacobians: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hessians: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)


class GradientFunction:
    """A model together with its derivatives, compiled once by ONNX Runtime.

    For outputs y and cotangents c it computes y and, for each x in `wrt`, dx = Σ over y of c·∂y/∂x; or what
    another transform gives.

    ```python
    f = GradientFunction("model.onnx", wrt="image", of="loss")
    result = f(image=image)
    result.values["loss"], result.gradients["image"]

    f = GradientFunction("model.onnx", transform="jvp")
    f(x=x, tangents={"x": direction}).tangents["y"]
    ```

    Args:
        model: A path, an `onnx.ModelProto` or an `ir.Model`; it is not changed.
        wrt: What to differentiate with respect to, as for `onnx_grad.vjp`.
        of: What to differentiate, as for `onnx_grad.vjp`.
        transform: The transform, by its name: `"vjp"`, `"grad"`, `"jvp"`, `"hvp"`, `"jacobian"`, `"hessian"`.
        stop: Tensors that count as constants.
        quantization: What is done where numbers are rounded, as for `onnx_grad.vjp`.
        recompute: What is computed again rather than kept, as for `onnx_grad.vjp`; for it and `grad` only.
        sizes: For `recompute`, what the symbols in the shapes of the inputs stand for.
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
        transform: Transform = "vjp",
        stop: Names = (),
        quantization: Quantization | None = None,
        recompute: Recompute | None = None,
        sizes: Mapping[str, int] | None = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
        log_severity_level: int | None = None,
    ) -> None:
        if transform not in _TRANSFORMS:
            raise InputError(
                f"there is no transform '{transform}'; there is: {quoted(get_args(Transform))}; others give "
                "models that GradientFunction.from_gradient_model runs"
            )
        recomputation: dict[str, Any] = {}
        if recompute is not None or sizes is not None:
            if transform not in _RECOMPUTING:
                raise InputError(
                    f"recompute: '{transform}' does not take it; these transforms do: {quoted(_RECOMPUTING)}"
                )
            recomputation = {"recompute": recompute, "sizes": sizes}
        gradient_model = _TRANSFORMS[transform](
            read_model(model), wrt, of, stop=stop, quantization=quantization, **recomputation
        )
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
        """Run a model that a transform of `onnx_grad` made before, from a file for example.

        Args:
            model: The transformed model. Its metadata says which of its outputs are derivatives.
            providers: As for the class.
            provider_options: As for the class.
            session_options: As for the class.
            log_severity_level: As for the class.

        Raises:
            ModelError: The model was not made by a transform.
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
        self._derivatives = {kind: _noted(model, kind) for kind in _DERIVATIVES}
        if not any(self._derivatives.values()):
            raise ModelError(
                f"the model has no metadata '{_key('gradients')}' or the like, so it was not made by a "
                "transform of onnx_grad; GradientFunction(model, wrt=…, of=…) transforms it"
            )
        self._directions = {kind: _noted(model, kind) for kind in _DIRECTIONS}
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
        """The inputs of the model, in its order, without cotangents and tangents."""
        directions = {name for names in self._directions.values() for name in names.values()}
        return tuple(name for name in self._specs if name not in directions)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs of the model, in its order, without the derivatives."""
        derivatives = {name for names in self._derivatives.values() for name in _leaves(names)}
        return tuple(name for name in self._outputs if name not in derivatives)

    @property
    def cotangent_names(self) -> tuple[str, ...]:
        """The tensors that are differentiated and take a cotangent: the names in `of`."""
        return tuple(self._directions["cotangents"])

    @property
    def tangent_names(self) -> tuple[str, ...]:
        """The tensors that take a tangent: the names in `wrt`, for `jvp` and `hvp`."""
        return tuple(self._directions["tangents"])

    @property
    def gradient_names(self) -> tuple[str, ...]:
        """The tensors that there are gradients for: the names in `wrt`."""
        return tuple(self._derivatives["gradients"])

    @property
    def gradient_outputs(self) -> Mapping[str, str]:
        """For each name in `wrt`, the name of the graph output that is its gradient."""
        return dict(self._derivatives["gradients"])

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers the session runs on, in order of precedence."""
        return tuple(self.session.get_providers())

    def __repr__(self) -> str:
        return (
            f"GradientFunction(inputs: {quoted(self.input_names)}; outputs: {quoted(self.output_names)}; "
            f"cotangents: {quoted(self.cotangent_names)}; gradients: {quoted(self.gradient_names)}; "
            f"{self._told_otherwise()}providers: {quoted(self.providers)})"
        )

    def _told_otherwise(self) -> str:
        """What there is besides cotangents and gradients."""
        others = {"tangents": self.tangent_names}
        others |= {kind: tuple(self._derivatives[kind]) for kind in ("jacobians", "hessians")}
        return "".join(f"{kind}: {quoted(names)}; " for kind, names in others.items() if names)

    def __call__(
        self,
        inputs: Mapping[str, Feed] | None = None,
        /,
        *,
        cotangents: Mapping[str, Feed] | None = None,
        tangents: Mapping[str, Feed] | None = None,
        **named_inputs: Feed,
    ) -> GradientResult:
        """Evaluate the model and its derivatives.

        Args:
            inputs: The inputs of the model by name. A cotangent or tangent may also be given here under the
                name of its graph input (`y_grad`, `x_tangent`), as a file of all inputs does.
            cotangents: For each name in `of`, an array of its shape and dtype: the derivative of whatever
                is wanted with respect to it. It can be left out for a tensor of one element, where it is one.
            tangents: For `jvp` and `hvp`: for each name in `wrt`, an array of its shape and dtype, the
                direction in which it moves. It can be left out for a tensor of one element, where it is one.
            **named_inputs: More inputs of the model, by keyword.

        Returns:
            The outputs and the derivatives: numpy arrays, or `OrtValue`s when any input is one, on its
            device.

        Raises:
            InputError: An input or direction is missing, unknown, or of the wrong shape or dtype; or ONNX
                Runtime cannot evaluate the model with these inputs.
        """
        directions = {"cotangents": cotangents or {}, "tangents": tangents or {}}
        feeds = self._feeds({**(inputs or {}), **named_inputs}, directions)
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
        derivatives: dict[str, Any] = {
            attribute: _with_results(self._derivatives[kind], results)
            for kind, attribute in _DERIVATIVES.items()
        }
        return GradientResult(
            values={name: results[name] for name in self.output_names}, outputs=results, **derivatives
        )

    def _feeds(self, given: dict[str, Feed], directions: Mapping[str, Mapping[str, Feed]]) -> dict[str, Feed]:
        """Everything the session is fed, checked against what the model declares."""
        check_names("input", given, tuple(self._specs))
        for kind, arrays in directions.items():
            inputs, role = self._directions[kind], kind.removesuffix("s")
            check_names(role, arrays, tuple(inputs))
            for name, array in arrays.items():
                if inputs[name] in given:
                    raise InputError(
                        f"the {role} of '{name}' is given twice: in {kind}, and as input '{inputs[name]}'"
                    )
                given[inputs[name]] = array
        missing = [n for n in self.input_names if self._specs[n].required and n not in given]
        if missing:
            expected = ", ".join(f"'{name}' ({self._specs[name]})" for name in missing)
            raise InputError(f"missing inputs: {expected}")
        bound: dict[str, Bound] = {}
        feeds = {n: _checked(spec, given[n], bound) for n, spec in self._specs.items() if n in given}
        for kind, inputs in self._directions.items():
            for name, graph_input in inputs.items():
                if graph_input not in feeds:
                    feeds[graph_input] = self._direction_of_scalar(kind, name, bound)
        return feeds

    def _direction_of_scalar(self, kind: str, name: str, bound: dict[str, Bound]) -> Array:
        """Ones for a tensor that is certain to have one element."""
        spec, role = self._specs[self._directions[kind][name]], kind.removesuffix("s")
        hint = (
            f"give {kind}={{'{name}': …}} with an array of the shape of '{name}' "
            f"({kind}: {quoted(self._directions[kind])})"
        )
        size = spec.size(bound)
        if size is None or spec.shape is None or spec.dtype is None:
            raise InputError(
                f"'{name}' is declared as {spec}, so that it is not known before running whether it has one "
                f"element, for which the {role} would be one; {hint}"
            )
        shape = [bound[d].size if isinstance(d, str) else d for d in spec.shape]
        if size != 1:
            raise InputError(
                f"the {role} of '{name}' is missing, and it is one only for a single element: "
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
    """Whether `model` was made by a transform of `onnx_grad`, so that it can be run as it is."""
    return any(_key(kind) in read_model(model).metadata_props for kind in _DERIVATIVES)


def _key(name: str) -> str:
    return METADATA_PREFIX + name


def _noted(model: ir.Model, name: str) -> dict[str, Any]:
    """What a transform noted in the model's metadata; nothing where none did."""
    noted: dict[str, Any] = json.loads(model.metadata_props.get(_key(name), "{}"))
    return noted


def _leaves(names: Mapping[str, Any]) -> Iterator[str]:
    """The names of graph outputs in a mapping of mappings."""
    for name in names.values():
        if isinstance(name, str):
            yield name
        else:
            yield from _leaves(name)


def _with_results(names: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping of mappings with the results of those names."""
    return {
        key: results[name] if isinstance(name, str) else _with_results(name, results)
        for key, name in names.items()
    }


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
