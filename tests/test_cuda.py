"""Gradients on an NVIDIA GPU equal those on the CPU, and nothing falls back silently."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import onnx_grad
from models import FOLDER

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no CUDA execution provider",
)

CASES = [
    ("digits_mlp", "pixels", (4, 64)),
    ("digits_cnn", "image", (4, 1, 8, 8)),
    ("encoder", "embeddings", (2, 5, 32)),
    ("energy", "positions", (6, 3)),
]


def arguments(path: str, x: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A point, and a cotangent of ones for the only output."""
    given = {x: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, given)
    return {**given, f"{session.get_outputs()[0].name}_grad": np.ones_like(y)}


@pytest.mark.parametrize(("name", "x", "shape"), CASES, ids=[case[0] for case in CASES])
def test_equals_the_cpu(name: str, x: str, shape: tuple[int, ...]) -> None:
    path = str(FOLDER / f"{name}.onnx")
    given = arguments(path, x, shape)
    on_cpu = onnx_grad.GradientFunction(path)(given)
    on_gpu = onnx_grad.GradientFunction(path, providers=["CUDAExecutionProvider"])(given)
    np.testing.assert_allclose(on_gpu.gradients[x], on_cpu.gradients[x], rtol=1e-3, atol=1e-4)


def test_stays_on_the_device() -> None:
    path = str(FOLDER / "digits_mlp.onnx")
    given = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        for name, array in arguments(path, "pixels", (4, 64)).items()
    }
    result = onnx_grad.GradientFunction(path, providers=["CUDAExecutionProvider"])(given)
    assert result.gradients["pixels"].device_name() == "cuda"
