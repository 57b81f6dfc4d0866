"""Recurrent networks as PyTorch's exporters write them, against its autograd."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad
from tests.graphs import operators

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own age

INPUTS, HIDDEN = 4, 5
EXAMPLE, OTHER = {"T": 6, "N": 3}, {"T": 9, "N": 2}


class Network(torch.nn.Module):
    """Two bidirectional layers, with the initial states as inputs."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        layers = getattr(torch.nn, kind)
        self.layers = layers(INPUTS, HIDDEN, num_layers=2, bidirectional=True, **options)

    def forward(self, x: Any, *states: Any) -> tuple[Any, ...]:
        y, finals = self.layers(x, states if len(states) > 1 else states[0])
        return (y, *finals) if isinstance(finals, tuple) else (y, finals)

    def axes(self) -> list[dict[int, str]]:
        """The axes of time and batch of x and of the initial states."""
        states = 2 if isinstance(self.layers, torch.nn.LSTM) else 1
        return [{0: "N", 1: "T"} if self.layers.batch_first else {0: "T", 1: "N"}, *[{1: "N"}] * states]


def arguments(network: Network, sizes: dict[str, int]) -> list[Any]:
    x, *states = network.axes()
    shapes = [[sizes[name] for name in x.values()] + [INPUTS], *([4, sizes["N"], HIDDEN] for _ in states)]
    return [torch.randn(*shape) for shape in shapes]


def exported(network: Network, exporter: str) -> onnx.ModelProto:
    """The ONNX model, with the parameters under their names in PyTorch."""
    example, axes = tuple(arguments(network, EXAMPLE)), network.axes()
    names = [f"x{i}" for i in range(len(example))]
    if exporter == "dynamo":
        dims = {name: torch.export.Dim(name) for name in EXAMPLE}
        x, *states = ({axis: dims[name] for axis, name in own.items()} for own in axes)
        options = {"dynamic_shapes": (x, tuple(states)), "optimize": False, "verbose": False}
    else:
        options = {"dynamic_axes": dict(zip(names, axes, strict=True)), "do_constant_folding": False}
    target = io.BytesIO()
    torch.onnx.export(network, example, target, input_names=names, dynamo=exporter == "dynamo", **options)
    return onnx.load_from_string(target.getvalue())


def allowed(model: onnx.ModelProto, network: Network, sizes: dict[str, int]) -> dict[str, int]:
    """The sizes, save those that the exporter fixed at what the example had."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return {name: dims[axis].dim_value or sizes[name] for axis, name in network.axes()[0].items()}


def by_autograd(network: Network, inputs: list[Any]) -> tuple[list[Any], list[np.ndarray]]:
    """Cotangents of the outputs, and the gradients with respect to inputs and parameters."""
    wrt = [*(x.requires_grad_() for x in inputs), *network.parameters()]
    outputs = network(*inputs)
    cotangents = [torch.randn_like(y) for y in outputs]
    return cotangents, [g.numpy() for g in torch.autograd.grad(outputs, wrt, cotangents)]


@pytest.mark.parametrize(
    ("kind", "options", "exporter"),
    [
        ("LSTM", {}, "dynamo"),
        ("LSTM", {}, "torchscript"),
        ("LSTM", {"batch_first": True}, "torchscript"),
        ("GRU", {}, "dynamo"),
        ("GRU", {}, "torchscript"),
        ("GRU", {"bias": False}, "torchscript"),
        ("RNN", {}, "dynamo"),  # which unrolls it
        ("RNN", {}, "torchscript"),
        ("RNN", {"nonlinearity": "relu"}, "torchscript"),
    ],
)
def test_gradients_are_those_of_autograd(kind: str, options: dict[str, Any], exporter: str) -> None:
    """With respect to input, initial states and all weights, at two sizes from one file."""
    torch.manual_seed(0)
    network = Network(kind, **options)
    model = exported(network, exporter)
    assert operators(model).count(kind) == (0 if (kind, exporter) == ("RNN", "dynamo") else 2)

    names = [value.name for value in model.graph.input]
    transformed = onnx_grad.vjp(model, names + [name for name, _ in network.named_parameters()])
    session = onnxruntime.InferenceSession(transformed.SerializeToString())
    for sizes in (EXAMPLE, allowed(model, network, OTHER)):
        inputs = arguments(network, sizes)
        cotangents, expected = by_autograd(network, inputs)
        given = [value.detach().numpy() for value in (*inputs, *cotangents)]
        feeds = dict(zip([value.name for value in session.get_inputs()], given, strict=True))
        gradients = session.run(None, feeds)[len(cotangents) :]
        for actual, wanted in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
