"""Where a function has no derivative: the declared conventions hold, and are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from docs.operators import operators
from onnx_grad.registry import State
from tests.oracle import evaluator, gradients, single_node

Numbers = Any  # nested lists of them, or one
SQUARE = [[[[1, 1], [1, 1]]]]
FIRST_OF_SQUARE = [[[[1, 0], [0, 0]]]]
SELU_AT_ZERO = 1.6732631921768188 * 1.0507010221481323


@dataclass(frozen=True)
class Kink:
    """A point without a derivative.

    Attributes:
        inputs: The operator's inputs, in order; integers are given as arrays.
        expected: The gradients of the sum of its first output by the float inputs, in order.
        attributes: Of the node.
        outputs: How many outputs the node has.
        in_pytorch: What computes the first output with PyTorch, given `torch` and the inputs; `None` where it
            has no such function, or takes other elements of a tie.
    """

    inputs: list[Numbers]
    expected: list[Numbers]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    in_pytorch: Callable[..., Any] | None = None


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


KINKS = {
    "Abs": Kink([[0]], [[0]], in_pytorch=lambda torch, x: x.abs()),
    "Acos": Kink([[-1, 1]], [[-np.inf, -np.inf]], in_pytorch=lambda torch, x: x.acos()),
    "Acosh": Kink([[1]], [[np.inf]], in_pytorch=lambda torch, x: x.acosh()),
    "Asin": Kink([[-1, 1]], [[np.inf, np.inf]], in_pytorch=lambda torch, x: x.asin()),
    "Atanh": Kink([[-1, 1]], [[np.inf, np.inf]], in_pytorch=lambda torch, x: x.atanh()),
    "Ceil": Kink([[1]], [[0]], in_pytorch=lambda torch, x: x.ceil()),
    "Clip": Kink([[-1, 2], -1, 2], [[1, 1], 0, 0], in_pytorch=lambda torch, x, a, b: x.clamp(a, b)),
    "Elu": Kink([[0]], [[2]], {"alpha": 2.0}, in_pytorch=lambda torch, x: torch.nn.functional.elu(x, 2.0)),
    "Floor": Kink([[1]], [[0]], in_pytorch=lambda torch, x: x.floor()),
    "GlobalLpPool": Kink(
        [[[[[0, 0]]]]],
        [[[[[0, 0]]]]],
        in_pytorch=lambda torch, x: torch.linalg.vector_norm(x, dim=(2, 3)),
    ),
    "GlobalMaxPool": Kink(
        [SQUARE],
        [FIRST_OF_SQUARE],
        in_pytorch=lambda torch, x: torch.nn.functional.adaptive_max_pool2d(x, 1),
    ),
    "GridSample": Kink(
        [[[[[1, 2], [3, 4]]]], [[[[2, 0]]]]],
        [[[[[0, 0.5], [0, 0.5]]]], [[[[0, 2]]]]],
        {"padding_mode": "border"},
        in_pytorch=lambda torch, x, grid: torch.nn.functional.grid_sample(
            x, grid, padding_mode="border", align_corners=False
        ),
    ),
    "GRU": Kink(
        [[[[0]]], [[[1]] * 3], [[[1]] * 3]],
        [[[[0]]], [[[0]] * 3], [[[0]] * 3]],
        {"hidden_size": 1, "activations": ["Sigmoid", "Relu"]},
        in_pytorch=lambda torch, x, w, r: (1 - torch.sigmoid(w[:, 0] * x)) * torch.relu(w[:, 2] * x),
    ),
    "HardSigmoid": Kink(
        [[-2, 2]],
        [[0, 0]],
        {"alpha": 0.25, "beta": 0.5},
        in_pytorch=lambda torch, x: torch.nn.functional.hardsigmoid(1.5 * x),
    ),
    "HardSwish": Kink([[-3, 3]], [[0, 1]], in_pytorch=lambda torch, x: torch.nn.functional.hardswish(x)),
    "Hardmax": Kink([[1, 1]], [[0, 0]]),
    "LSTM": Kink(
        [[[[0]]], [[[1]] * 4], [[[1]] * 4]],
        [[[[0]]], [[[0]] * 4], [[[0]] * 4]],
        {"hidden_size": 1, "activations": ["Sigmoid", "Relu", "Tanh"]},
        in_pytorch=lambda torch, x, w, r: torch.tanh(torch.sigmoid(w[:, 0] * x) * torch.relu(w[:, 3] * x)),
    ),
    "LeakyRelu": Kink(
        [[0]],
        [[0.25]],
        {"alpha": 0.25},
        in_pytorch=lambda torch, x: torch.nn.functional.leaky_relu(x, 0.25),
    ),
    "LpNormalization": Kink([[0, 0]], [[0, 0]]),
    "LpPool": Kink([[[[[0, 0]]]]], [[[[[0, 0]]]]], {"kernel_shape": [1, 2]}),
    "Max": Kink([[1], [1]], [[0.5], [0.5]], in_pytorch=lambda torch, a, b: torch.maximum(a, b)),
    "MaxPool": Kink(
        [SQUARE],
        [FIRST_OF_SQUARE],
        {"kernel_shape": [2, 2]},
        in_pytorch=lambda torch, x: torch.nn.functional.max_pool2d(x, 2),
    ),
    "MaxRoiPool": Kink([SQUARE, [[0, 0, 0, 1, 1]]], [FIRST_OF_SQUARE, [[0] * 5]], {"pooled_shape": [1, 1]}),
    "Min": Kink([[1], [1]], [[0.5], [0.5]], in_pytorch=lambda torch, a, b: torch.minimum(a, b)),
    "Mod": Kink([[4], [2]], [[1], [-2]], {"fmod": 1}, in_pytorch=lambda torch, a, b: torch.fmod(a, b)),
    "PRelu": Kink(
        [[0], [0.25]], [[0.25], [0]], in_pytorch=lambda torch, x, s: torch.nn.functional.prelu(x, s)
    ),
    "Pow": Kink([[0, 0], [0, 2]], [[0, 0], [0, 0]], in_pytorch=lambda torch, x, e: x**e),
    "RNN": Kink(
        [[[[0]]], [[[1]]], [[[1]]]],
        [[[[0]]], [[[0]]], [[[0]]]],
        {"hidden_size": 1, "activations": ["Relu"]},
        in_pytorch=lambda torch, x, w, r: torch.relu(w * x),
    ),
    "ReduceL1": Kink([[0, 0]], [[0, 0]], in_pytorch=lambda torch, x: torch.linalg.vector_norm(x, 1)),
    "ReduceL2": Kink([[0, 0]], [[0, 0]], in_pytorch=lambda torch, x: torch.linalg.vector_norm(x)),
    "ReduceMax": Kink([[1, 1, 0]], [[0.5, 0.5, 0]], in_pytorch=lambda torch, x: x.amax()),
    "ReduceMin": Kink([[1, 1, 2]], [[0.5, 0.5, 0]], in_pytorch=lambda torch, x: x.amin()),
    "Relu": Kink([[0]], [[0]], in_pytorch=lambda torch, x: x.relu()),
    "RoiAlign": Kink(
        [SQUARE, [[0, 0, 2, 2]], integers(0)],
        [FIRST_OF_SQUARE, [[0] * 4]],
        {"mode": "max", "sampling_ratio": 2},
    ),
    "Round": Kink([[0.5]], [[0]], in_pytorch=lambda torch, x: x.round()),
    "ScatterElements": Kink(
        [[1, 0], integers(0, 0), [1, 1]],
        [[1 / 3, 1], [1 / 3, 1 / 3]],
        {"reduction": "max"},
        in_pytorch=lambda torch, x, i, u: x.scatter_reduce(0, i, u, "amax"),
    ),
    "ScatterND": Kink(
        [[1, 0], integers(0, 0)[:, None], [1, 1]], [[1 / 3, 1], [1 / 3, 1 / 3]], {"reduction": "max"}
    ),
    "Selu": Kink([[0]], [[SELU_AT_ZERO]], in_pytorch=lambda torch, x: torch.selu(x)),
    "Shrink": Kink([[-0.5, 0.5]], [[0, 0]], in_pytorch=lambda torch, x: torch.nn.functional.hardshrink(x)),
    "Sign": Kink([[0]], [[0]], in_pytorch=lambda torch, x: x.sign()),
    "Sqrt": Kink([[0]], [[np.inf]], in_pytorch=lambda torch, x: x.sqrt()),
    "ThresholdedRelu": Kink(
        [[1]], [[0]], in_pytorch=lambda torch, x: torch.nn.functional.threshold(x, 1.0, 0.0)
    ),
    "TopK": Kink([[1, 1, 0], integers(1)], [[1, 0, 0]], outputs=2),
    "Unique": Kink([[2, 2, 1]], [[0.5, 0.5, 1]]),
}


def arrays(kink: Kink) -> dict[str, np.ndarray]:
    """The inputs by name, numbers in float32."""
    return {
        f"x{i}": given if isinstance(given, np.ndarray) else np.asarray(given, dtype=np.float32)
        for i, given in enumerate(kink.inputs)
    }


def test_every_convention_has_a_point() -> None:
    with_convention = {name for name, entry in operators().items() if entry.convention}

    assert with_convention - set(KINKS) == set()


def test_every_point_has_a_convention_or_a_derivative_that_is_zero() -> None:
    table = operators()

    assert [n for n in KINKS if not table[n].convention and table[n].state is not State.ZERO] == []


@pytest.mark.parametrize("operator", KINKS)
def test_the_convention_holds(operator: str) -> None:
    kink = KINKS[operator]
    inputs = arrays(kink)
    wrt = [name for name, array in inputs.items() if array.dtype == np.float32]
    model = single_node(operator, inputs, outputs=kink.outputs, **kink.attributes)
    cotangent = np.ones_like(evaluator(model)(inputs)["y0"])
    actual = gradients(model, inputs, {"y0": cotangent}, wrt)

    for name, expected in zip(wrt, kink.expected, strict=True):
        np.testing.assert_allclose(actual[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("operator", [name for name, kink in KINKS.items() if kink.in_pytorch is not None])
def test_the_convention_is_that_of_pytorch(operator: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    kink = KINKS[operator]
    inputs = [torch.tensor(a, requires_grad=a.dtype == np.float32) for a in arrays(kink).values()]
    assert kink.in_pytorch is not None
    kink.in_pytorch(torch, *inputs).sum().backward()

    floats = [x for x in inputs if x.requires_grad]
    for x, expected in zip(floats, kink.expected, strict=True):
        actual = torch.zeros_like(x) if x.grad is None else x.grad
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-7)
