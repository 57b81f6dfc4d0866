"""Every transform of every model in `models/` against PyTorch's `torch.func`, to single precision."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from models import FOLDER
from models.cartpole import PARAMETERS
from onnx_grad import GradientFunction

torch = pytest.importorskip("torch", reason="compares with PyTorch's torch.func")

Array = np.ndarray
Function = Callable[..., Any]


def cartpole(state: Any, force: Any) -> tuple[Any, Any]:
    """The equations of `models/cartpole.py`."""
    p = {name: torch.tensor(value, dtype=state.dtype) for name, value in PARAMETERS.items()}
    position, velocity, angle, rate = state.split(1, dim=1)
    sine, cosine, total = angle.sin(), angle.cos(), p["cart_mass"] + p["pole_mass"]
    moment = p["pole_mass"] * p["half_length"]
    push = (force + moment * rate**2 * sine) / total
    inertia = p["half_length"] * (p["four_thirds"] - p["pole_mass"] / total * cosine**2)
    turning = (p["gravity"] * sine - push * cosine) / inertia
    velocity = velocity + p["time_step"] * (push - moment * turning * cosine / total)
    rate = rate + p["time_step"] * turning
    after = torch.cat(
        [position + p["time_step"] * velocity, velocity, angle + p["time_step"] * rate, rate], dim=1
    )
    cost = (after * (after @ p["state_cost"])).sum() + (force * (force @ p["force_cost"])).sum()
    return after, cost


def _network(name: str) -> Function:
    network: Function = importlib.import_module(f"models.{name}").load().eval().double()
    return network


FUNCTIONS: dict[str, Callable[[], Function]] = {
    "broadcast_add": lambda: lambda a, b: a + b,
    "cartpole": lambda: cartpole,
    **{n: lambda n=n: _network(n) for n in ("digits_cnn", "digits_mlp", "encoder", "energy")},
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "broadcast_add": {"a": (2, 3), "b": (3,)},
    "cartpole": {"state": (2, 4), "force": (2, 1)},
    "digits_cnn": {"image": (1, 1, 8, 8)},
    "digits_mlp": {"pixels": (1, 64)},
    "encoder": {"embeddings": (1, 2, 32)},
    "energy": {"positions": (4, 3)},
}


@dataclass
class Case:
    """A model, the same function in PyTorch, and a point."""

    path: str

    @property
    def name(self) -> str:
        return self.path.removesuffix("_torchscript")

    @property
    def file(self) -> str:
        return str(FOLDER / f"{self.path}.onnx")

    @cached_property
    def function(self) -> Function:
        return FUNCTIONS[self.name]()

    @cached_property
    def outputs(self) -> list[str]:
        return [value.name for value in onnx.load(self.file).graph.output]

    def arrays(self, seed: int, *batch: int) -> dict[str, Array]:
        generator = np.random.default_rng(seed)
        return {
            name: generator.standard_normal((*batch, *shape)).astype(np.float32)
            for name, shape in SHAPES[self.name].items()
        }

    def named(self, results: Any) -> dict[str, Array]:
        """PyTorch's results by the names of the outputs."""
        several = results if isinstance(results, tuple) else (results,)
        return {y: r.detach().numpy() for y, r in zip(self.outputs, several, strict=True)}


@pytest.fixture(scope="module", params=sorted(path.stem for path in FOLDER.glob("*.onnx")))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def tensors(arrays: dict[str, Array]) -> tuple[Any, ...]:
    return tuple(torch.tensor(array, dtype=torch.float64) for array in arrays.values())


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    largest = max(float(np.abs(expected).max()), 1e-3)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5 * largest)


def test_vjp(case: Case) -> None:
    inputs = case.arrays(0)
    values, pull = torch.func.vjp(case.function, *tensors(inputs))
    dy = {y: np.cos(v).astype(np.float32) for y, v in case.named(values).items()}
    seeds = tuple(torch.tensor(d, dtype=torch.float64) for d in dy.values())
    expected = pull(seeds if isinstance(values, tuple) else seeds[0])
    result = GradientFunction(case.file)(inputs, cotangents=dy)
    for x, gradient in zip(inputs, expected, strict=True):
        assert_close(result.gradients[x], gradient.detach().numpy())


def test_jvp(case: Case) -> None:
    inputs, directions = case.arrays(0), case.arrays(1)
    values, tangents = torch.func.jvp(case.function, tensors(inputs), tensors(directions))
    result = GradientFunction(case.file, transform="jvp")(inputs, tangents=directions)
    for y, tangent in case.named(tangents).items():
        assert_close(result.tangents[y], tangent)
        assert_close(result.values[y], case.named(values)[y])


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_jacobian(case: Case, mode: str) -> None:
    inputs = case.arrays(0)
    transform = torch.func.jacrev if mode == "reverse" else torch.func.jacfwd
    expected = transform(case.function, argnums=tuple(range(len(inputs))))(*tensors(inputs))
    expected = expected if isinstance(expected[0], tuple) else (expected,)
    model = onnx_grad.jacobian(case.file, mode=mode)
    result = GradientFunction.from_gradient_model(model)(inputs)
    for y, row in zip(case.outputs, expected, strict=True):
        for x, block in zip(inputs, row, strict=True):
            assert_close(result.jacobians[y][x], block.detach().numpy())


@pytest.mark.filterwarnings("ignore::onnx_grad.NoPathWarning")  # a sum has no second derivative
def test_hessian(case: Case) -> None:
    inputs = case.arrays(0)
    expected = torch.func.hessian(case.function, argnums=tuple(range(len(inputs))))(*tensors(inputs))
    expected = expected if isinstance(expected[0][0], tuple) else (expected,)
    result = GradientFunction(case.file, transform="hessian")(inputs)
    for y, blocks in zip(case.outputs, expected, strict=True):
        for x1, row in zip(inputs, blocks, strict=True):
            for x2, block in zip(inputs, row, strict=True):
                assert_close(result.hessians[y][x1][x2], block.detach().numpy())


def test_vmap(case: Case) -> None:
    inputs = case.arrays(0, 3)
    expected = torch.func.vmap(case.function)(*tensors(inputs))
    session = onnx_grad.sessions.create_session(onnx_grad.vmap(onnx_grad.runtime.read_model(case.file)))
    results = session.run(case.outputs, inputs)
    for actual, values in zip(results, case.named(expected).values(), strict=True):
        assert_close(actual, values)


def test_vmap_of_vjp(case: Case) -> None:
    inputs = case.arrays(0, 3)

    def gradients(*point: Any) -> Any:
        values, pull = torch.func.vjp(case.function, *point)
        several = values if isinstance(values, tuple) else (values,)
        ones = tuple(torch.ones_like(value) for value in several)
        return pull(ones if isinstance(values, tuple) else ones[0])

    expected = torch.func.vmap(gradients)(*tensors(inputs))
    model = onnx_grad.vmap(onnx_grad.vjp(case.file))
    function = GradientFunction.from_gradient_model(model)
    shapes = {y: v.shape for y, v in case.named(torch.func.vmap(case.function)(*tensors(inputs))).items()}
    result = function(inputs, cotangents={y: np.ones(s, np.float32) for y, s in shapes.items()})
    for x, gradient in zip(inputs, expected, strict=True):
        assert_close(result.gradients[x], gradient.detach().numpy())


@pytest.mark.parametrize(("path", "of"), [("energy", "energy"), ("cartpole", "cost")])
def test_hvp(path: str, of: str) -> None:
    case = Case(path)
    inputs, directions = case.arrays(0), case.arrays(1)
    index, _ = case.outputs.index(of), case.function

    def scalar(*point: Any) -> Any:
        values = case.function(*point)
        return values[index] if isinstance(values, tuple) else values

    gradient = torch.func.grad(scalar, argnums=tuple(range(len(inputs))))
    _, expected = torch.func.jvp(gradient, tensors(inputs), tensors(directions))
    result = GradientFunction(case.file, of=of, transform="hvp")(inputs, tangents=directions)
    for x, product in zip(inputs, expected, strict=True):
        assert_close(result.hessian_products[x], product.detach().numpy())
