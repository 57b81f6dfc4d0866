"""From a model to an ONNX Runtime session: providers, large and external weights, clear errors.

`onnxruntime` is imported on first use, because `onnxruntime` and `onnxruntime-gpu` exclude each other and a
transform needs neither.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.errors import ModelError, RuntimeUnavailableError
from onnx_grad.signature import quoted

Provider: TypeAlias = "str | tuple[str, Mapping[str, Any]]"
Settings: TypeAlias = "tuple[Sequence[Provider] | None, Sequence[Mapping[str, Any]] | None, Any]"

# Models with more weights than this share them with ONNX Runtime instead of going through one protobuf
# message, which ends at 2 GB.
LARGEST_SERIALIZED_BYTES = 1 << 30

# Shapes, axes and other small tensors stay in the message: ONNX Runtime reads them while it infers shapes.
SMALLEST_SHARED_BYTES = 4096

_MISSING_KERNEL = re.compile(r"Could not find an implementation for (\S+) node with name '(.*)'")
_GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


class MissingKernelError(RuntimeUnavailableError):
    """ONNX Runtime has no kernel for an operator of the model at its version and element type."""


def onnxruntime() -> Any:
    """The `onnxruntime` module.

    Raises:
        RuntimeUnavailableError: It is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"running a model needs ONNX Runtime, which cannot be imported ({error}); "
            "install it with: pip install 'onnx-grad[cpu]' (or 'onnx-grad[gpu]' for NVIDIA GPUs)"
        ) from error


def create_session(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    providers: Sequence[Provider] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    session_options: Any = None,
    external_data_folder: str | os.PathLike[str] | None = None,
    log_severity_level: int | None = None,
) -> Any:
    """Compile `model` into an `onnxruntime.InferenceSession`.

    The weights of an `ir.Model` that lie in external files, or that are larger than one protobuf message
    can be, are shared with ONNX Runtime and not copied; they are kept alive by the session. With
    `session_options` of the caller's own, such a model goes through a temporary folder instead, because
    shared weights would stay behind in the options object.

    Args:
        model: A path, an `onnx.ModelProto` or an `ir.Model`.
        providers: ONNX Runtime's ordered list of execution providers, passed on as it is; `None` is the
            CPU, or the providers that `session_options` already holds.
        provider_options: One mapping for each provider, passed on as it is.
        session_options: An `onnxruntime.SessionOptions`, passed on as it is.
        external_data_folder: The folder that the external tensors of a `ModelProto` are relative to; by
            default the current one. A path and an `ir.Model` know theirs.
        log_severity_level: What ONNX Runtime writes to stderr, from 0 (all) to 4 (fatal errors), where
            there are no `session_options`.

    Returns:
        The `onnxruntime.InferenceSession`. It runs on the providers asked for and nothing else (ONNX
        Runtime itself places single operators without a kernel on the CPU).

    Raises:
        RuntimeUnavailableError: ONNX Runtime, or a provider, is not there or does not load.
        MissingKernelError: An operator has no kernel.
        ModelError: ONNX Runtime refuses the model.
    """
    if providers is None and not _holds_providers(session_options):
        providers = ["CPUExecutionProvider"]
    _check_available(providers or [])
    options = session_options or _options(log_severity_level)
    settings = providers, provider_options, options
    if isinstance(model, (str, os.PathLike)):
        return _open(os.fspath(model), *settings)
    if isinstance(model, onnx.ModelProto):
        if not _has_external_data(model):
            return _open(_serialized(model), *settings)
        model = _located(model, os.path.abspath(external_data_folder or ""))
    shared = _to_share(model)
    if not shared:
        return _open(_serialized(without_external_data(model)), *settings)
    if session_options is not None:
        return _open_from_files(model, settings)
    return _open_sharing(model, shared, settings)


def _holds_providers(session_options: Any) -> bool:
    # Versions of ONNX Runtime without this method have no providers in their session options.
    has_providers = getattr(session_options, "has_providers", None)
    return has_providers is not None and bool(has_providers())


def _options(log_severity_level: int | None) -> Any:
    options = onnxruntime().SessionOptions()
    if log_severity_level is not None:
        options.log_severity_level = log_severity_level
    return options


def _open_from_files(model: ir.Model, settings: Settings) -> Any:
    with tempfile.TemporaryDirectory(prefix="onnx-grad-") as folder:
        path = os.path.join(folder, "model.onnx")
        ir.save(model.clone(), path, external_data="weights", size_threshold_bytes=SMALLEST_SHARED_BYTES)
        return _open(path, *settings)


def _open_sharing(model: ir.Model, shared: Mapping[str, ir.TensorProtocol], settings: Settings) -> Any:
    options = settings[-1]
    values = {name: _ort_value(tensor) for name, tensor in shared.items()}
    options.add_external_initializers(list(values), [value for value, _ in values.values()])
    session = _open(_serialized(_detached(model, shared)), *settings)
    # ONNX Runtime reads the weights where they are, for as long as the session lives.
    session._onnx_grad_weights = values
    return session


def _has_external_data(model: onnx.ModelProto) -> bool:
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


def _located(model: onnx.ModelProto, folder: str) -> ir.Model:
    """`model` with the folder that its external tensors are relative to."""
    result = ir.from_proto(model)
    for value in result.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = folder
    return result


def _to_share(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The weights that do not go through a protobuf message; none when the whole model fits into one."""
    tensors = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors.values())
    if not external and sum(t.nbytes for t in tensors.values()) <= LARGEST_SERIALIZED_BYTES:
        return {}
    return {name: tensor for name, tensor in tensors.items() if _can_share(tensor)}


def _can_share(tensor: ir.TensorProtocol) -> bool:
    """Whether the memory of `tensor` is what ONNX Runtime expects: several 4-bit elements share a byte."""
    return tensor.nbytes >= SMALLEST_SHARED_BYTES and tensor.dtype.bitwidth >= 8


def without_external_data(model: ir.Model) -> ir.Model:
    """`model`, or a copy that holds all its weights itself where some of them lie in files."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return _detached(model, {}) if external else model


def _detached(model: ir.Model, shared: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """A copy of `model` without external data: references for the `shared` weights, the others read in."""
    copy = model.clone()
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if name in shared:
            value.const_value = ir.ExternalTensor(
                "shared-in-memory",
                None,
                None,
                shared[name].dtype,
                shape=ir.Shape(shared[name].shape.numpy()),
                name=name,
            )
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(_content(tensor), dtype=tensor.dtype, name=name)
    return copy


def _serialized(model: onnx.ModelProto | ir.Model) -> bytes:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    try:
        return bytes(proto.SerializeToString())
    except ValueError as error:
        raise ModelError(
            f"the model does not fit into one protobuf message of 2 GB ({error}); "
            "save it with external data and give its path, or give it as an onnx_ir.Model"
        ) from error


def _ort_value(tensor: ir.TensorProtocol) -> tuple[Any, Any]:
    """An OrtValue over the memory of `tensor`, and the array that owns that memory."""
    ort_value = onnxruntime().OrtValue
    array = np.ascontiguousarray(_content(tensor))
    if array.dtype.isbuiltin == 1:
        return ort_value.ortvalue_from_numpy(array), array
    bits = array.view(f"u{array.dtype.itemsize}")
    return ort_value.ortvalue_from_numpy_with_onnx_type(bits, int(tensor.dtype)), array


def _content(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(tensor.numpy())
    except OSError as error:
        raise ModelError(f"cannot read the external data of '{tensor.name}': {error}") from error


def _open(
    content: str | bytes,
    providers: Sequence[Provider] | None,
    provider_options: Sequence[Mapping[str, Any]] | None,
    session_options: Any,
) -> Any:
    runtime = onnxruntime()
    names = [provider_name(provider) for provider in providers or []]
    try:
        session = runtime.InferenceSession(
            content,
            session_options,
            providers=providers,
            provider_options=provider_options,
            enable_fallback=0,
        )
    except runtime_errors() as error:
        where = f"'{content}'" if isinstance(content, str) else "the model"
        raise _refusal(where, names, error) from error
    dropped = [name for name in names if name not in session.get_providers()]
    if dropped:
        raise RuntimeUnavailableError(
            f"ONNX Runtime {runtime.__version__} could not load {quoted(dropped)} and would run on "
            f"{quoted(session.get_providers())} instead; {_provider_advice(dropped)}"
        )
    return session


def runtime_errors() -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises: its exceptions have no base class of their own."""
    onnxruntime()
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, ValueError, RuntimeError)


def runtime_message(error: Exception) -> str:
    """What ONNX Runtime says, without its error code and on one line."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)


def provider_name(provider: Provider) -> str:
    """The name of an entry of a provider list, which may be paired with options."""
    return provider if isinstance(provider, str) else provider[0]


def _refusal(where: str, providers: Sequence[str], error: Exception) -> ModelError | RuntimeUnavailableError:
    runtime = f"ONNX Runtime {onnxruntime().__version__}"
    kind = type(error).__name__
    if kind == "NotImplemented":
        found = _MISSING_KERNEL.search(str(error))
        what = f"no kernel for {found[1]} (node '{found[2]}')" if found else runtime_message(error)
        return MissingKernelError(f"{runtime} cannot run {where} on {quoted(providers)}: {what}")
    if kind == "EPFail" or isinstance(error, (ValueError, RuntimeError)):
        return RuntimeUnavailableError(
            f"{runtime} cannot use {quoted(providers)} for {where}: {runtime_message(error)}"
        )
    return ModelError(f"{runtime} cannot load {where}: {runtime_message(error)}")


def _check_available(providers: Sequence[Provider]) -> None:
    runtime = onnxruntime()
    available = runtime.get_available_providers()
    missing = [name for name in map(provider_name, providers) if name not in available]
    if missing:
        raise RuntimeUnavailableError(
            f"the installed ONNX Runtime {runtime.__version__} has no {quoted(missing)}, "
            f"only {quoted(available)}; {_provider_advice(missing)}"
        )


def _provider_advice(missing: Sequence[str]) -> str:
    if any(name in _GPU_PROVIDERS for name in missing):
        return (
            "for NVIDIA GPUs: pip uninstall onnxruntime, then pip install 'onnx-grad[gpu]' "
            "(onnxruntime-gpu), with the CUDA and cuDNN versions it was built for"
        )
    return "install the build of ONNX Runtime that has it: https://onnxruntime.ai/docs/execution-providers"
