"""The models of `models/` against PyTorch's autograd, one transformed file at several sizes."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnx_grad
from models import FOLDER

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")

CASES: list[tuple[str, str, str, list[tuple[int, ...]]]] = [
    ("digits_mlp", "pixels", "logits", [(1, 64), (7, 64)]),
    ("digits_cnn", "image", "logits", [(1, 1, 8, 8), (5, 1, 8, 8)]),
    ("encoder", "embeddings", "encoded", [(1, 4, 32), (3, 9, 32)]),
    ("energy", "positions", "energy", [(2, 3), (9, 3)]),
]


def point(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def autograd(module: Any, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """The cotangent pulled back to the input (named "") and to every parameter."""
    given = torch.from_numpy(x).requires_grad_()
    module.requires_grad_()
    value = module(given)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(value, [given, *parameters.values()], torch.from_numpy(dy))
    return dict(zip(["", *parameters], (gradient.numpy() for gradient in gradients), strict=True))


def assert_close(actual: np.ndarray, expected: np.ndarray, largest: float) -> None:
    """Equal to 1e-5 of the `largest` gradient: float32 sums in another order differ by that.

    A gradient that is zero but for rounding, such as that of the keys' bias in attention, has no scale of
    its own.
    """
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("exporter", ["", "_torchscript"])
@pytest.mark.parametrize(("name", "x", "y", "shapes"), CASES, ids=[case[0] for case in CASES])
def test_one_file_at_every_size(
    name: str, x: str, y: str, shapes: list[tuple[int, ...]], exporter: str
) -> None:
    path = FOLDER / f"{name}{exporter}.onnx"
    module = importlib.import_module(f"models.{name}").load(path)
    weights = [weight for weight, _ in module.named_parameters()]
    outputs = [f"{x}_grad", *(f"{weight}_grad" for weight in weights)]
    forward = onnxruntime.InferenceSession(path)
    session = onnxruntime.InferenceSession(onnx_grad.vjp(path, [x, *weights]).SerializeToString())
    for shape in shapes:
        given = {x: point(shape)}
        value = forward.run([y], given)[0]
        dy = np.asarray(np.random.default_rng(0).standard_normal(value.shape), np.float32)
        actual = session.run(outputs, {**given, f"{y}_grad": dy})
        expected = autograd(module, given[x], dy)
        largest = max(float(np.abs(gradient).max()) for gradient in expected.values())
        for gradient, name_in_torch in zip(actual, ["", *weights], strict=True):
            assert_close(gradient, expected[name_in_torch], largest)
