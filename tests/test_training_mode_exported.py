"""Networks exported by PyTorch and put into training mode, against the same networks in `train()`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own age


class Network(torch.nn.Module):
    """Convolution, batch normalization and dropout, twice; and a head with a normalization of its own.

    The gradient of a bias before a normalization would be rounding errors alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(4)
        self.drop1 = torch.nn.Dropout(0.3)
        self.conv2 = torch.nn.Conv2d(4, 5, 3, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(5, eps=1e-3, momentum=0.2)
        self.drop2 = torch.nn.Dropout(0.6)
        self.head = torch.nn.Linear(5, 3, bias=False)
        self.norm3 = torch.nn.BatchNorm1d(3)

    def forward(self, x: Any) -> Any:
        h = self.drop1(torch.relu(self.norm1(self.conv1(x))))
        h = self.drop2(torch.relu(self.norm2(self.conv2(h))).mean((2, 3)))
        return self.norm3(self.head(h))


class Given(torch.nn.Module):
    """Dropout with a mask that is already known, scaled."""

    def __init__(self, factor: np.ndarray) -> None:
        super().__init__()
        self.factor = torch.from_numpy(factor)

    def forward(self, x: Any) -> Any:
        return x * self.factor


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    made = Network().eval()
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.dtype is torch.float32:
                tensor.copy_(torch.rand(tensor.shape) + (0.5 if tensor.ndim == 1 else -0.5))
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    return made


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def exported(network: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as it is for inference, but for its Dropout, which the exporters would leave out."""
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    example = (torch.rand(2, 3, 8, 8),)
    if request.param == "dynamo":
        dimensions = {"x": {0: torch.export.Dim.DYNAMIC}}
        torch.onnx.export(
            network, example, path, dynamo=True, optimize=False, verbose=False, output_names=["y"],
            dynamic_shapes=dimensions,
        )  # fmt: skip
    else:
        torch.onnx.export(
            network, example, path, dynamo=False, do_constant_folding=False, input_names=["x"],
            output_names=["y"], training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def session(exported: Path) -> onnxruntime.InferenceSession:
    """The gradients of all parameters in training mode; the factors of the masks are outputs too."""
    trained, gradients = exported.with_name("trained.onnx"), exported.with_name("gradients.onnx")
    onnx_grad.training_mode(exported, save_as=trained)
    onnx_grad.vjp(trained, "parameters", save_as=gradients)
    model = onnx.load(gradients)
    factors = [name for node in model.graph.node for name in node.output if name.endswith("/factor")]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in factors)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("batch", [16, 40])
def test_outputs_gradients_and_statistics_are_those_of_pytorch(
    network: Any, session: onnxruntime.InferenceSession, batch: int
) -> None:
    x, dy = torch.randn(batch, 3, 8, 8), torch.randn(batch, 3)
    names = [output.name for output in session.get_outputs()]
    feeds = {"x": x.numpy(), "y_grad": dy.numpy(), "seed": np.array(batch)}
    results = dict(zip(names, session.run(None, feeds), strict=True))
    factors = [results[name] for name in names if name.endswith("/factor")]
    reference = copy.deepcopy(network).train().double()
    reference.drop1, reference.drop2 = map(Given, factors)
    y = reference(x.double())
    y.backward(dy.double())

    np.testing.assert_allclose(results["y"], y.detach(), rtol=1e-5, atol=1e-5)
    gradients = {f"{name}_grad": p.grad for name, p in reference.named_parameters()}
    assert gradients.keys() == {name for name in names if name.endswith("_grad")}
    for name, gradient in gradients.items():
        atol = 1e-5 * float(gradient.abs().max())
        np.testing.assert_allclose(results[name], gradient, rtol=0, atol=atol, err_msg=name)
    running = {f"{n}_updated": b for n, b in reference.named_buffers() if "running" in n}
    assert running.keys() == {name for name in names if name.endswith("_updated")}
    for name, statistic in running.items():
        np.testing.assert_allclose(results[name], statistic, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_ratios_are_those_of_the_modules(session: onnxruntime.InferenceSession) -> None:
    names = [output.name for output in session.get_outputs() if output.name.endswith("/factor")]
    feeds = {
        "x": np.zeros((600, 3, 8, 8), np.float32),
        "y_grad": np.zeros((600, 3), np.float32),
        "seed": np.array(0),
    }
    first, second = session.run(names, feeds)

    assert np.mean(first == 0) == pytest.approx(0.3, abs=0.01)
    assert np.mean(second == 0) == pytest.approx(0.6, abs=0.03)


def test_an_export_for_inference_has_nothing_left(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout()
    ).eval()
    torch.onnx.export(network, (torch.rand(2, 3, 8, 8),), tmp_path / "n.onnx", dynamo=False)
    with pytest.warns(onnx_grad.NoLayerWarning, match="optimize=False"):
        onnx_grad.training_mode(tmp_path / "n.onnx")
