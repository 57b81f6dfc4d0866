"""The forward models in ``models/``: valid, small, as accurate as claimed, free in every size."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from models import FOLDER, digits

Array = npt.NDArray[Any]

FILES = sorted(FOLDER.glob("*.onnx"))
FROM_TORCH = ["digits_cnn", "digits_mlp", "encoder", "energy"]
SIZES = [
    {"batch": 1, "sequence": 7, "particles": 1},
    {"batch": 5, "sequence": 3, "particles": 9},
]

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_torch_model = pytest.mark.parametrize("name", FROM_TORCH)
each_size = pytest.mark.parametrize("sizes", SIZES, ids=["small", "large"])


def shape_of(value: onnx.ValueInfoProto, sizes: dict[str, int]) -> tuple[int, ...]:
    """The declared shape, its symbols bound to ``sizes``."""
    dimensions = value.type.tensor_type.shape.dim
    return tuple(sizes[d.dim_param] if d.dim_param else d.dim_value for d in dimensions)


def random_inputs(path: Path, sizes: dict[str, int]) -> dict[str, Array]:
    random = np.random.default_rng(0)
    graph = onnx.load(path).graph
    return {
        value.name: random.standard_normal(shape_of(value, sizes), dtype=np.float32) for value in graph.input
    }


def run(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_every_model_is_here() -> None:
    twins = [f"{name}{suffix}" for name in FROM_TORCH for suffix in ("", "_torchscript")]
    assert [path.stem for path in FILES] == sorted(["broadcast_add", "cartpole", *twins])


@each_file
def test_passes_the_full_check(path: Path) -> None:
    onnx.checker.check_model(path, full_check=True)


@each_file
def test_stands_alone(path: Path) -> None:
    """Weights are inside the file, and no metadata tells of the machine which exported it."""
    graph = onnx.load(path, load_external_data=False).graph
    assert all(t.data_location == TensorProto.DEFAULT for t in graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.node)


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 3_000_000


@each_file
def test_the_readme_lists_it(path: Path) -> None:
    row = f"| `{path.name}` |"
    (line,) = [x for x in (FOLDER / "README.md").read_text().splitlines() if x.startswith(row)]
    model = onnx.load(path)
    opset, nodes, size = (cell.strip().replace(",", "") for cell in line.split("|")[-4:-1])
    assert int(opset) == model.opset_import[0].version
    assert int(nodes) == len(model.graph.node)
    assert int(size) == path.stat().st_size


@each_file
@each_size
def test_runs_at_every_size(path: Path, sizes: dict[str, int]) -> None:
    outputs = run(path, random_inputs(path, sizes))
    for value in onnx.load(path).graph.output:
        assert outputs[value.name].shape == shape_of(value, sizes)
        assert outputs[value.name].dtype == np.float32
        assert np.isfinite(outputs[value.name]).all()


@each_torch_model
@each_size
def test_both_exporters_agree(name: str, sizes: dict[str, int]) -> None:
    dynamo, torchscript = FOLDER / f"{name}.onnx", FOLDER / f"{name}_torchscript.onnx"
    inputs = random_inputs(dynamo, sizes)
    expected, actual = run(dynamo, inputs), run(torchscript, inputs)
    assert expected.keys() == actual.keys()
    for output, value in expected.items():
        np.testing.assert_allclose(actual[output], value, rtol=1e-5, atol=1e-5)


@each_torch_model
def test_both_exporters_keep_the_same_weights(name: str) -> None:
    dynamo, torchscript = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(FOLDER / file).graph.initializer}
        for file in (f"{name}.onnx", f"{name}_torchscript.onnx")
    )
    assert torchscript
    for weight, value in torchscript.items():
        np.testing.assert_array_equal(dynamo[weight], value)


@each_torch_model
@each_size
@pytest.mark.parametrize("suffix", ["", "_torchscript"], ids=["dynamo", "torchscript"])
def test_agrees_with_torch(name: str, suffix: str, sizes: dict[str, int]) -> None:
    torch = pytest.importorskip("torch", reason="compares with the module in PyTorch")
    path = FOLDER / f"{name}{suffix}.onnx"
    module = importlib.import_module(f"models.{name}").load(path)
    inputs = random_inputs(path, sizes)
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, inputs.values())).numpy()
    (actual,) = run(path, inputs).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@each_torch_model
def test_a_missing_weight_is_named(name: str) -> None:
    pytest.importorskip("torch", reason="rebuilds the module in PyTorch")
    with pytest.raises(ValueError, match=r"broadcast_add\.onnx has no initializer '[\w.]+'"):
        importlib.import_module(f"models.{name}").load(FOLDER / "broadcast_add.onnx")


@pytest.mark.parametrize("suffix", ["", "_torchscript"], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(("name", "claimed"), [("digits_mlp", 0.9733), ("digits_cnn", 0.9933)])
def test_reads_held_out_digits(name: str, suffix: str, claimed: float) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn ships the images of the digits")
    _, test = digits.split()
    inputs = {"image": test.image} if name == "digits_cnn" else {"pixels": test.pixels}
    logits = run(FOLDER / f"{name}{suffix}.onnx", inputs)["logits"]
    assert digits.accuracy(logits, test.label) == pytest.approx(claimed, abs=1e-4)
    assert claimed >= 0.97


def test_shipped_digits_are_held_out() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn ships the images of the digits")
    _, test = digits.split()
    shipped = np.load(FOLDER / "digits.npz")
    assert len(shipped["label"]) == digits.EXAMPLES
    for name in ("image", "pixels", "label"):
        np.testing.assert_array_equal(shipped[name], getattr(test, name)[: digits.EXAMPLES])


@pytest.mark.parametrize(("name", "entry"), [("digits_mlp", "pixels"), ("digits_cnn", "image")])
def test_shipped_digits_fit_the_models(name: str, entry: str) -> None:
    shipped = np.load(FOLDER / "digits.npz")
    logits = run(FOLDER / f"{name}.onnx", {entry: shipped[entry]})["logits"]
    assert set(shipped["label"]) == set(range(10))
    assert digits.accuracy(logits, shipped["label"]) >= 31 / 32


def test_broadcast_add_adds() -> None:
    inputs = random_inputs(FOLDER / "broadcast_add.onnx", {"batch": 4})
    (z,) = run(FOLDER / "broadcast_add.onnx", inputs).values()
    np.testing.assert_array_equal(z, inputs["a"] + inputs["b"])


def test_cartpole_moves_as_its_mass_matrix_says() -> None:
    """``M(θ) [x", θ"] = forces`` solved as a linear system, for the formulas solved by hand."""
    inputs = random_inputs(FOLDER / "cartpole.onnx", {"batch": 6})
    outputs = run(FOLDER / "cartpole.onnx", inputs)
    cart, pole, length, gravity, step = 1.0, 0.1, 0.5, 9.81, 0.02
    cost = 0.0
    for state, force, after in zip(inputs["state"], inputs["force"], outputs["next_state"], strict=True):
        _, _, angle, rate = state
        coupling = pole * length * np.cos(angle)
        mass = [[cart + pole, coupling], [coupling, 4 / 3 * pole * length**2]]
        centrifugal = pole * length * rate**2 * np.sin(angle)
        forces = [force.item() + centrifugal, pole * gravity * length * np.sin(angle)]
        velocity = state[[1, 3]] + step * np.linalg.solve(mass, forces)
        expected = np.zeros(4)
        expected[[1, 3]] = velocity
        expected[[0, 2]] = state[[0, 2]] + step * velocity
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
        cost += expected**2 @ [1.0, 0.1, 10.0, 0.1] + 0.001 * force.item() ** 2
    np.testing.assert_allclose(outputs["cost"], cost, rtol=1e-5)


def test_energy_is_a_property_of_the_shape() -> None:
    """Moving, turning and renumbering the particles changes nothing; a lone one has no energy."""
    path = FOLDER / "energy.onnx"
    positions = random_inputs(path, {"particles": 7})["positions"]
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    expected = run(path, {"positions": positions})["energy"]
    assert abs(expected) > 0.1
    moved = positions + np.float32(2.0)
    turned = (positions @ rotation).astype(np.float32)
    for same in (moved, turned, positions[::-1].copy()):
        np.testing.assert_allclose(run(path, {"positions": same})["energy"], expected, rtol=1e-4)
    assert run(path, {"positions": positions[:1]})["energy"] == 0.0


def test_energy_has_finite_forces_which_balance() -> None:
    torch = pytest.importorskip("torch", reason="differentiates with PyTorch")
    module = importlib.import_module("models.energy").load()
    positions = torch.from_numpy(
        random_inputs(FOLDER / "energy.onnx", {"particles": 7})["positions"]
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(module(positions), positions)
    assert gradient.abs().max() > 0.1
    np.testing.assert_allclose(gradient.sum(dim=0), np.zeros(3), atol=1e-4)
