"""The nine image networks of the `onnx` package, for their image and for all their weights.

The shipped weights are all 0.02, which makes most gradients trivial, so the networks get random ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad
from models import light

pytestmark = pytest.mark.slow

RELATIVE_ERROR = (
    2e-3  # of float32 through dozens of layers, with ReLU units that round to either side of zero
)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@pytest.fixture(scope="module", params=light.NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


class Case:
    """A network with random weights, its gradients and what it was differentiated at."""

    def __init__(self, name: str) -> None:
        self.model = light.with_random_weights(light.load(name))
        self.image = light.image_name(self.model)
        self.logits = light.logits_name(self.model)
        self.wrt = [self.image, *light.weight_names(self.model)]
        self.transformed = onnx_grad.vjp(self.model, self.wrt, self.logits)
        generator = np.random.default_rng(1)
        shape = (1, 3, 224, 224)
        self.inputs = {self.image: generator.standard_normal(shape, dtype=np.float32)}
        self.cotangent = generator.standard_normal(1000, dtype=np.float32)

    @functools.cached_property
    def point(self) -> dict[str, np.ndarray]:
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer}
        values = {**weights, **self.inputs}
        return {x: values[x] for x in self.wrt}

    @functools.cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        gradient_session = session(self.transformed)
        (seed,) = (i for i in gradient_session.get_inputs() if i.name == f"{self.logits}_grad")
        cotangent = self.cotangent.reshape(seed.shape)
        names = [f"{x}_grad" for x in self.wrt]
        values = gradient_session.run(names, {**self.inputs, seed.name: cotangent})
        return dict(zip(self.wrt, values, strict=True))

    def objective(self, inputs: Mapping[str, np.ndarray]) -> float:
        return float(self._forward.run([self.logits], inputs)[0].astype(np.float64).ravel() @ self.cotangent)

    @functools.cached_property
    def _forward(self) -> onnxruntime.InferenceSession:
        model = without_contents(self.model, set(self.wrt))
        if self.logits not in [output.name for output in model.graph.output]:
            model.graph.output.append(onnx.ValueInfoProto(name=self.logits))
        return session(model)


def without_contents(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The model with initializers that have to be given as inputs."""
    graph = onnx.GraphProto(
        name=model.graph.name,
        node=model.graph.node,
        input=model.graph.input,
        output=model.graph.output,
        initializer=[tensor for tensor in model.graph.initializer if tensor.name not in names],
    )
    # ONNX Runtime takes no weights as inputs in older files.
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)


def test_the_result_is_valid(case: Case) -> None:
    onnx.checker.check_model(case.transformed, full_check=True)


def test_gradients_equal_autograd(case: Case) -> None:
    """As close to PyTorch's gradients in float64 as PyTorch's own in float32 are.

    Both round ReLU units and maxima to either side, which moves some gradients by up to a percent. Where a
    unit is rounded by one of them only, which differs between processors, the exact gradients at images that
    are nearer than rounding tell how much it moves them.
    """
    networks = pytest.importorskip("tests.torch_networks", reason="compares with PyTorch's autograd")
    exact = autograd(networks, case, networks.torch.float64)
    found = distances(case.gradients, exact)
    unavoidable = farthest(autograd(networks, case, networks.torch.float32), exact)
    generator = np.random.default_rng(3)
    for _ in range(6):
        if max(found.values()) <= 3 * unavoidable + 5e-4:
            break
        noise = 1 + 1e-6 * generator.standard_normal(case.inputs[case.image].shape)
        nearby = {case.image: case.inputs[case.image] * noise}
        unavoidable = max(
            unavoidable, farthest(autograd(networks, case, networks.torch.float64, nearby), exact)
        )
    for x in case.wrt:
        assert case.gradients[x].shape == exact[x].shape
        assert found[x] <= 3 * unavoidable + 5e-4, x


def farthest(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest relative distance of two gradients of the same tensor."""
    return max(distances(actual, expected).values())


def distances(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The relative distance of the two gradients of each tensor."""
    return {x: distance(actual[x], gradient) for x, gradient in expected.items()}


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """The relative distance of two gradients; zero for two that are zero."""
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def autograd(
    networks: ModuleType, case: Case, dtype: Any, inputs: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """PyTorch's gradients in `dtype`, at the case's point or at other inputs."""
    torch = networks.torch
    arrays = {**case.point, **(inputs or {})}
    point = {x: torch.tensor(value, dtype=dtype, requires_grad=True) for x, value in arrays.items()}
    logits = networks.evaluate(case.model, point, case.logits)
    cotangent = torch.tensor(case.cotangent, dtype=dtype).reshape(logits.shape)
    gradients = torch.autograd.grad(logits, list(point.values()), cotangent)
    return dict(zip(point, (gradient.numpy() for gradient in gradients), strict=True))


def test_gradients_equal_finite_differences(case: Case) -> None:
    """Along one direction in which every tensor moves by the same fraction of its gradient's share."""
    generator = np.random.default_rng(2)
    point = case.point
    direction = {
        x: np.sign(case.gradients[x])
        * np.abs(generator.standard_normal(v.shape, dtype=np.float32))
        * scale(v)
        for x, v in point.items()
    }
    expected = sum(float((case.gradients[x].astype(np.float64) * d).sum()) for x, d in direction.items())
    step = 1e-3

    def along(t: float) -> float:
        return case.objective({x: (v + np.float32(t) * direction[x]) for x, v in point.items()})

    near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
    assert (8 * near - far) / (12 * step) == pytest.approx(expected, rel=1e-2)


def scale(values: np.ndarray) -> np.float32:
    """The typical magnitude of a tensor, so that a step is a fraction of it; of a zero tensor, a little."""
    return np.float32(max(np.sqrt(np.mean(np.square(values))), 1e-2)) / np.float32(np.sqrt(values.size))


def test_one_file_serves_every_image_size() -> None:
    """A file that knows nothing of the image's size gives what files made for each size give."""
    model = light.with_random_weights(light.load("squeezenet"))
    wrt = [light.image_name(model), *light.weight_names(model)]
    of = light.logits_name(model)
    anywhere = session(onnx_grad.vjp(with_image(model, ["batch", 3, "height", "width"]), wrt, of))
    for shape in ([1, 3, 48, 48], [2, 3, 64, 50]):
        here = session(onnx_grad.vjp(with_image(model, shape), wrt, of))
        image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        cotangent = np.ones((shape[0], 1000, 1, 1), np.float32)
        feeds = {wrt[0]: image, f"{of}_grad": cotangent}
        gradients = [f"{name}_grad" for name in wrt]
        for name, actual, expected in zip(
            gradients, anywhere.run(gradients, feeds), here.run(gradients, feeds), strict=True
        ):
            assert distance(actual, expected) < 1e-4, name


def with_image(model: onnx.ModelProto, shape: list[int | str]) -> onnx.ModelProto:
    """The model with another declared shape of its image, and nothing declared of what follows from it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (image,) = (value for value in copy.graph.input if value.name == light.image_name(model))
    image.CopyFrom(onnx.helper.make_tensor_value_info(image.name, onnx.TensorProto.FLOAT, shape))
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return copy
