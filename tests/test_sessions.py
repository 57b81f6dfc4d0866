"""Sessions: where weights come from, and what is said when a session cannot be."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnx_grad import sessions
from onnx_grad.errors import ModelError, RuntimeUnavailableError
from onnx_grad.sessions import MissingKernelError, create_session
from tests.graphs import parse

WEIGHT = np.arange(4096, dtype=np.float32)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model file whose weight lies in a file beside it."""
    model = parse("g (float[4096] x) => (float[4096] y) { y = Add(x, W) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "W"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="W.bin", size_threshold=0)
    return path


def output(session: Any) -> np.ndarray:
    (y,) = session.run(None, {"x": np.ones(4096, np.float32)})
    return y


def test_external_weights_of_a_path(external: Path) -> None:
    np.testing.assert_array_equal(output(create_session(external)), WEIGHT + 1)


def test_external_weights_of_a_proto_need_their_folder(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    session = create_session(proto, external_data_folder=external.parent)
    np.testing.assert_array_equal(output(session), WEIGHT + 1)
    with pytest.raises(ModelError, match=r"cannot read the external data of 'W'"):
        create_session(proto)


def test_external_weights_of_an_ir_model_are_shared(external: Path) -> None:
    session = create_session(ir.load(external))
    gc.collect()
    np.testing.assert_array_equal(output(session), WEIGHT + 1)
    assert set(session._onnx_grad_weights) == {"W"}


def test_session_options_stay_free_of_weights(external: Path) -> None:
    options = onnxruntime.SessionOptions()
    first = create_session(ir.load(external), session_options=options)
    np.testing.assert_array_equal(output(first), WEIGHT + 1)
    # The same name with other content: the options must not remember the first weight.
    other = parse("g (float[4096] x) => (float[4096] y) { y = Sub(x, W) }")
    other.graph.initializer.append(onnx.numpy_helper.from_array(2 * WEIGHT, "W"))
    second = create_session(other, session_options=options)
    np.testing.assert_array_equal(output(second), 1 - 2 * WEIGHT)


def test_models_beyond_one_message_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LARGEST_SERIALIZED_BYTES", 1000)
    model = parse("g (float[4096] x) => (float[4096] y) { y = Add(x, W) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "W"))
    session = create_session(ir.from_proto(model))
    assert set(session._onnx_grad_weights) == {"W"}
    np.testing.assert_array_equal(output(session), WEIGHT + 1)


def test_a_missing_provider_is_no_silent_cpu_run() -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no 'CUDAExecutionProvider'.*onnx-grad\[gpu\]"):
        create_session(parse("g (float x) => (float y) { y = Neg(x) }"), providers=["CUDAExecutionProvider"])
    with pytest.raises(RuntimeUnavailableError, match="no 'NoSuchProvider'"):
        create_session(parse("g (float x) => (float y) { y = Neg(x) }"), providers=[("NoSuchProvider", {})])


def test_a_provider_that_does_not_load_is_no_silent_cpu_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = sessions.onnxruntime()
    monkeypatch.setattr(
        runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = runtime.InferenceSession
    monkeypatch.setattr(
        runtime,
        "InferenceSession",
        lambda *args, providers, **options: real(*args, providers=["CPUExecutionProvider"], **options),
    )
    with pytest.raises(RuntimeUnavailableError, match="could not load 'CUDAExecutionProvider'"):
        create_session(parse("g (float x) => (float y) { y = Neg(x) }"), providers=["CUDAExecutionProvider"])


def test_missing_onnxruntime_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args, **kwargs)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(RuntimeUnavailableError, match=r"onnx-grad\[cpu\].*onnx-grad\[gpu\]"):
        create_session(parse("g (float x) => (float y) { y = Neg(x) }"))


def test_importing_onnx_grad_needs_no_runtime() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import onnx_grad, onnx_grad.runtime"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_kernel_names_the_operator() -> None:
    model = parse("g (double[1,1,3] x, double[1,1,2] w) => (double[1,1,2] y) { y = Conv(x, w) }")
    with pytest.raises(MissingKernelError, match=r"no kernel for Conv\(\d+\)"):
        create_session(model)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"cannot load '.*broken.onnx'"):
        create_session(path)


def test_session_options_pass_through() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    session = create_session(parse("g (float x) => (float y) { y = Neg(x) }"), session_options=options)
    assert session.get_session_options().intra_op_num_threads == 3
