"""Models quantised by ONNX Runtime's tool, in all of its formats, have PyTorch's straight-through gradients.

Weights are of unsigned integers where kernels multiply integers: products of both kinds overflow, by design,
on processors without VNNI instructions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from typer.testing import CliRunner

import onnx_grad
from onnx_grad.cli import app
from tests.graphs import run

MODELS = {"digits_cnn": "image", "digits_mlp": "pixels"}
FORMATS = ["QDQ", "QDQ by channel", "QDQ with float weights", "QOperator", "dynamic"]
DATA = np.load("models/digits.npz")
DY = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
STRAIGHT_THROUGH: dict[str, Any] = {"quantization": "straight-through"}


class Calibration(CalibrationDataReader):
    """The images in groups of eight."""

    def __init__(self, name: str) -> None:
        groups = ({name: DATA[name][i : i + 8]} for i in range(0, 32, 8))
        self._groups: Iterator[dict[str, np.ndarray]] = groups

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._groups, None)


def quantized(model: str, kind: str, folder: Path) -> Path:
    source, target = f"models/{model}.onnx", folder / f"{model}.onnx"
    logging.disable(logging.WARNING)
    try:
        if kind == "dynamic":
            quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
        else:
            quantize_static(
                source,
                target,
                Calibration(MODELS[model]),
                quant_format=QuantFormat.QDQ if kind.startswith("QDQ") else QuantFormat.QOperator,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8 if kind.startswith("QDQ") else QuantType.QUInt8,
                per_channel=kind == "QDQ by channel",
                extra_options={"AddQDQPairToWeight": kind == "QDQ with float weights"},
            )
    finally:
        logging.disable(logging.NOTSET)
    return target


@pytest.fixture(scope="module", params=[(m, k) for m in MODELS for k in FORMATS], ids=" ".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of the input of a quantised model, and the model."""
    model, kind = request.param
    return MODELS[model], quantized(model, kind, tmp_path_factory.mktemp("quantized"))


def test_gradients_are_those_of_pytorch(case: tuple[str, Path]) -> None:
    torch = pytest.importorskip("tests.fake_quantization", reason="compares with PyTorch's fake_quantize")
    name, path = case
    model = onnx.load(path)
    parameters = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and not any(part in tensor.name for part in ("scale", "running"))
    ]
    inputs, wrt = {name: DATA[name][:8]}, [name, *parameters]
    function = onnx_grad.GradientFunction(path, wrt, **STRAIGHT_THROUGH)
    result = function(inputs, cotangents={"logits": DY})
    levels = rounded_values(function.model, model, {**inputs, "logits_grad": DY})
    expected = torch.torch_gradients(model, inputs, DY, wrt, levels)
    for x in wrt:
        assert np.any(expected[x])
        scale = np.abs(expected[x]).max()
        np.testing.assert_allclose(result.gradients[x], expected[x], rtol=0, atol=1e-5 * scale, err_msg=x)


def rounded_values(
    gradient: onnx.ModelProto, forward: onnx.ModelProto, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What each quantizing node of a model gives, when run with its gradients."""
    names = [node.output[0] for node in forward.graph.node if "Q" in node.op_type]
    watched = onnx.ModelProto()
    watched.CopyFrom(gradient)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = run(watched, inputs)
    return {name: values[name] for name in names}


def test_gradients_are_close_to_those_of_the_model_before(case: tuple[str, Path]) -> None:
    name, path = case
    source = "models/digits_cnn.onnx" if name == "image" else "models/digits_mlp.onnx"
    arguments: Any = ({name: DATA[name][:8]},)
    before = onnx_grad.GradientFunction(source, name)(*arguments, cotangents={"logits": DY})
    after = onnx_grad.GradientFunction(path, name, **STRAIGHT_THROUGH)(*arguments, cotangents={"logits": DY})
    a, b = before.gradients[name].ravel(), after.gradients[name].ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


def test_without_the_choice_it_is_refused(case: tuple[str, Path]) -> None:
    name, path = case
    with pytest.raises(onnx_grad.UnsupportedOpError, match='quantization="straight-through"'):
        onnx_grad.vjp(path, name)


def test_it_is_written_at_any_batch_size(case: tuple[str, Path], tmp_path: Path) -> None:
    name, path = case
    target = tmp_path / "gradient.onnx"
    onnx_grad.vjp(path, name, save_as=target, **STRAIGHT_THROUGH)
    function = onnx_grad.GradientFunction.from_gradient_model(target)
    several = function({name: DATA[name][:3]}, cotangents={"logits": DY[:3]})
    assert several.gradients[name].shape == DATA[name][:3].shape


@pytest.fixture(scope="module")
def qdq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized("digits_mlp", "QDQ", tmp_path_factory.mktemp("quantized"))


class TestInspection:
    def test_says_what_is_done(self, qdq: Path) -> None:
        report = onnx_grad.inspect(qdq, **STRAIGHT_THROUGH)
        assert report.differentiable
        (rounding,) = [line for line in report.operators if line.operator == "QuantizeLinear"]
        assert rounding.rule == "quantization.quantize_linear"
        assert rounding.convention == "rounding passes the gradient, clipping gives 0"
        assert "quantization: straight-through" in str(report)

    def test_says_how_to_unblock(self, qdq: Path) -> None:
        report = onnx_grad.inspect(qdq)
        assert {blocker.operator for blocker in report.blockers} == {"QuantizeLinear"}
        assert all("straight-through" in blocker.reason for blocker in report.blockers)
        assert "quantization:" not in str(report)


class TestChecking:
    def test_finite_differences_of_a_staircase_are_refused(self, qdq: Path) -> None:
        with pytest.raises(onnx_grad.NotDifferentiableError, match="finite differences do not apply"):
            onnx_grad.check_gradients(qdq, **STRAIGHT_THROUGH)

    def test_they_apply_where_nothing_is_rounded_on_the_way(self, qdq: Path) -> None:
        report = onnx_grad.check_gradients(
            qdq, "pixels_DequantizeLinear_Output", "relu", max_coordinates=8, **STRAIGHT_THROUGH
        )
        assert report.passed


class TestCommands:
    def test_vjp_and_run(self, qdq: Path, tmp_path: Path) -> None:
        option = ["--quantization", "straight-through"]
        gradient, arrays, results = (tmp_path / name for name in ("g.onnx", "in.npz", "out.npz"))
        np.savez(arrays, pixels=DATA["pixels"][:8], logits_grad=DY)
        written = CliRunner().invoke(app, ["vjp", str(qdq), str(gradient), *option])
        assert written.exit_code == 0
        expected = onnx_grad.GradientFunction(qdq, **STRAIGHT_THROUGH)(
            pixels=DATA["pixels"][:8], cotangents={"logits": DY}
        ).gradients["pixels"]
        for model, options in ((gradient, []), (qdq, option)):
            ran = CliRunner().invoke(
                app, ["run", str(model), "--inputs", str(arrays), "--out", str(results), *options]
            )
            assert ran.exit_code == 0
            np.testing.assert_array_equal(np.load(results)["pixels_grad"], expected)

    def test_inspect(self, qdq: Path) -> None:
        blocked = CliRunner().invoke(app, ["inspect", str(qdq), "--json"])
        free = CliRunner().invoke(app, ["inspect", str(qdq), "--json", "--quantization", "straight-through"])
        assert (blocked.exit_code, free.exit_code) == (1, 0)
        assert json.loads(free.stdout)["quantization"] == "straight-through"

    def test_check(self, qdq: Path) -> None:
        result = CliRunner().invoke(app, ["check", str(qdq), "--quantization", "straight-through"])
        assert result.exit_code == 2
        assert "finite differences do not apply" in result.stderr

    def test_unknown_choice(self, qdq: Path, tmp_path: Path) -> None:
        arguments = ["grad", str(qdq), str(tmp_path / "g.onnx"), "--quantization", "rounded"]
        assert CliRunner().invoke(app, arguments).exit_code == 2
