"""Whole models and their gradients over a batch: against each example, and against PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from models import FOLDER
from onnx_grad import GradientFunction
from tests.batching.examples import SIZE, check, one_by_one, scans
from tests.oracle import given_names

Array = np.ndarray
FILES = sorted(FOLDER.glob("*.onnx"))

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def _inputs(model: onnx.ModelProto) -> dict[str, Array]:
    """Three examples of every input, each of two images, sequences or particles."""
    random = np.random.default_rng(0)
    shapes = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: random.uniform(0, 1, (SIZE, *shape)).astype(np.float32) for name, shape in shapes.items()}


def _gradient(model: onnx.ModelProto) -> onnx.ModelProto:
    """The gradients of all inputs and of all weights."""
    names = [value.name for value in model.graph.input]
    names += [t.name for t in model.graph.initializer if t.data_type == 1 and len(t.dims) > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnx_grad.NoPathWarning)
        return onnx_grad.vjp(model, names)


@each_file
def test_forward(path: Path) -> None:
    model = onnx.load(path)
    inputs = _inputs(model)
    batched = check(model, inputs, dict.fromkeys(inputs, 0))
    assert scans(batched) == []
    onnx.checker.check_model(batched, full_check=True)


@each_file
def test_gradients(path: Path) -> None:
    """Of every example by itself, as for per-sample gradients; for several cotangents, as for a Jacobian."""
    model = onnx.load(path)
    gradient, inputs = _gradient(model), _inputs(model)
    cotangents, _ = given_names(gradient)
    outputs = one_by_one(model, inputs, dict.fromkeys(inputs, 0))
    random = np.random.default_rng(1)
    seeds = {cotangents[y]: random.standard_normal(a.shape).astype(a.dtype) for y, a in outputs.items()}
    batched = check(gradient, inputs | seeds, dict.fromkeys([*inputs, *seeds], 0), rtol=1e-3, atol=1e-4)
    assert scans(batched) == []
    first = {name: array[0] for name, array in inputs.items()}
    batched = check(gradient, first | seeds, dict.fromkeys(seeds, 0), rtol=1e-3, atol=1e-4)
    assert scans(batched) == []


@pytest.mark.parametrize(("name", "source"), [("digits_mlp", "pixels"), ("digits_cnn", "image")])
def test_per_sample_gradients_against_torch(name: str, source: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="PyTorch is the oracle")
    module = _module(name)
    weights = {n: p.detach() for n, p in module.named_parameters()}
    buffers = dict(module.named_buffers())
    digits = np.load(FOLDER / "digits.npz")
    examples = torch.from_numpy(
        digits["image"][:4].reshape(4, 1, *((1, 8, 8) if source == "image" else (64,)))
    )
    cotangent = torch.randn(4, 1, 10, generator=torch.Generator().manual_seed(0))

    def loss(parameters: Any, x: Any, dy: Any) -> Any:
        return (torch.func.functional_call(module, {**parameters, **buffers}, (x,)) * dy).sum()

    expected = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, examples, cotangent)

    gradient = onnx_grad.vjp(FOLDER / f"{name}.onnx", "parameters")
    batched = onnx_grad.vmap(gradient, {source: 0, "logits_grad": 0})
    f = GradientFunction.from_gradient_model(batched)
    actual = f({source: examples.numpy()}, cotangents={"logits": cotangent.numpy()}).gradients
    assert set(actual) == set(expected)
    for parameter, array in actual.items():
        np.testing.assert_allclose(array, expected[parameter].numpy(), rtol=1e-3, atol=1e-5)


def _module(name: str) -> Any:
    """The PyTorch module with the weights of the shipped file, in evaluation mode."""
    if name == "digits_mlp":
        from models import digits_mlp as source
    else:
        from models import digits_cnn as source  # type: ignore[no-redef]
    return source.load().eval()
