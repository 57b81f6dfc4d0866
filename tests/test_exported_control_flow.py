"""Loops and branches as PyTorch's exporters write them, against its autograd."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import operators

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
Tensor = torch.Tensor  # for torch.jit.script, which resolves annotations
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own age


class Field(torch.nn.Module):
    """A learned vector field."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 8)
        self.outer = torch.nn.Linear(8, 3)

    def forward(self, y: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(y)))


class RungeKutta(torch.nn.Module):
    """A neural ordinary differential equation: `n` steps of the classical method over a learned field."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Field()

    def forward(self, y: Tensor, n: Tensor) -> Tensor:
        for _ in range(int(n)):
            k1 = self.field(y)
            k2 = self.field(y + 0.05 * k1)
            k3 = self.field(y + 0.05 * k2)
            k4 = self.field(y + 0.1 * k3)
            y = y + (0.1 / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        return y


class UntilLarge(torch.nn.Module):
    """A loop that ends by what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = torch.nn.Linear(3, 3)

    def forward(self, y: Tensor) -> Tensor:
        while bool(y.abs().sum() < 10.0):
            y = y * 1.3 + 0.1 * torch.sin(self.grow(y))
        return y


class Branches(torch.nn.Module):
    """`torch.cond` over a learned layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda x: torch.sin(self.linear(x)), lambda x: 2 * torch.exp(x * x), (x,)
        )


def scripted(module: Any, inputs: dict[str, Any]) -> onnx.ModelProto:
    """The module with its Python control flow, by the TorchScript exporter."""
    file = io.BytesIO()
    torch.onnx.export(
        torch.jit.script(module),
        tuple(inputs.values()),
        file,
        opset_version=17,
        input_names=list(inputs),
        output_names=["result"],
        dynamic_axes={"y": {0: "batch"}},
        dynamo=False,
    )
    return onnx.load_from_string(file.getvalue())


def assert_equals_autograd(model: onnx.ModelProto, module: Any, inputs: dict[str, Any]) -> None:
    """The gradients of the first input and of all parameters, to 1e-5 of the largest."""
    first, *others = inputs
    given = inputs[first].clone().requires_grad_()
    value = module(given, *(inputs[name] for name in others))
    dy = torch.randn_like(value)
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(
        value, [given, *parameters.values()], dy, allow_unused=True, materialize_grads=True
    )
    function = onnx_grad.GradientFunction(model, wrt=[first, *parameters])
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    (output,) = (y.name for y in model.graph.output)
    actual = function(**feeds, cotangents={output: dy.numpy()}).gradients
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for name, gradient in zip([first, *parameters], expected, strict=True):
        np.testing.assert_allclose(actual[name], gradient.numpy(), rtol=1e-5, atol=1e-5 * largest)


def test_runge_kutta_with_its_steps_as_an_input() -> None:
    torch.manual_seed(0)
    module = RungeKutta()
    model = scripted(module, {"y": torch.randn(4, 3), "n": torch.tensor(5)})
    assert operators(model).count("Loop") == 1
    for batch, steps in ((4, 5), (2, 9), (3, 1)):
        assert_equals_autograd(model, module, {"y": torch.randn(batch, 3), "n": torch.tensor(steps)})


def test_while_with_a_condition_on_data() -> None:
    torch.manual_seed(0)
    module = UntilLarge()
    model = scripted(module, {"y": torch.randn(4, 3)})
    for scale in (0.01, 0.5, 20.0):
        assert_equals_autograd(model, module, {"y": torch.randn(2, 3) * scale})


def test_cond_of_the_dynamo_exporter() -> None:
    pytest.importorskip("onnxscript", reason="the exporter needs it")
    torch.manual_seed(0)
    module = Branches()
    model = torch.onnx.export(module, (torch.randn(4, 3),), dynamo=True, input_names=["x"]).model_proto
    assert "If" in operators(model)
    x = torch.rand(4, 3)
    assert_equals_autograd(model, module, {"x": x})
    assert_equals_autograd(model, module, {"x": -x})
