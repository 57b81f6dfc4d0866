"""`training_mode`: what it makes of a model, and that its gradients are those of training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from typer.testing import CliRunner

import onnx_grad
from onnx_grad.cli import app
from tests.graphs import input_names, operators, output_names, parse, run
from tests.kernels import NEWEST_OPSET, has_kernel

STATISTICS = (
    "float[3] scale = {1, 2, 0.5}, float[3] bias = {0, 1, -1}, float[3] m = {0, 1, 2}, float[3] v = {1, 2, 4}"
)
NORM = f"""g (float[N,3,H,W] x) => (float[N,3,H,W] y) <{STATISTICS}> {{
    [bn] y = BatchNormalization (x, scale, bias, m, v)
}}"""
DROP = "g (float[N,M] x) => (float[N,M] y) <float r = {0.25}> { [drop] y = Dropout (x, r) }"
BOTH = f"""g (float[N,3,4,4] x) => (float[N,3,4,4] y) <{STATISTICS}, float r = {{0.25}}> {{
    [bn] h = BatchNormalization (x, scale, bias, m, v)
    t = Tanh (h)
    [drop] y = Dropout (t, r)
}}"""


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 2 + 3).astype(dtype)


def normalized(x: np.ndarray, scale: object, bias: object, epsilon: float = 1e-5) -> np.ndarray:
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *[1] * (x.ndim - 2))
    standard = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return standard * np.reshape(scale, shape) + np.reshape(bias, shape)


def metadata(model: onnx.ModelProto, key: str) -> dict[str, str]:
    return json.loads(next(p.value for p in model.metadata_props if p.key == f"pkg.onnx_grad.{key}"))


class TestBatchNormalization:
    def test_statistics_are_those_of_the_batch(self) -> None:
        model = onnx_grad.training_mode(parse(NORM))
        for shape in ((4, 3, 5, 6), (2, 3, 1, 2)):
            x = normal(*shape)
            results = run(model, {"x": x})
            n = x.size // 3

            np.testing.assert_allclose(
                results["y"], normalized(x, [1, 2, 0.5], [0, 1, -1]), rtol=2e-5, atol=2e-5
            )
            np.testing.assert_allclose(
                results["m_updated"], 0.9 * np.array([0, 1, 2]) + 0.1 * x.mean((0, 2, 3)), rtol=1e-5
            )
            np.testing.assert_allclose(
                results["v_updated"],
                0.9 * np.array([1, 2, 4]) + 0.1 * x.var((0, 2, 3)) * n / (n - 1),
                rtol=1e-5,
            )

    @pytest.mark.parametrize("dims", ["[2,3]", "[N,3]", "[N,3,L]", "[2,3,4]", "[N,3,A,B,C]"])
    def test_any_rank(self, dims: str) -> None:
        model = onnx_grad.training_mode(parse(NORM.replace("[N,3,H,W]", dims)))
        x = normal(*[2, 3, 4, 2, 2][: dims.count(",") + 1])

        np.testing.assert_allclose(
            run(model, {"x": x})["y"], normalized(x, [1, 2, 0.5], [0, 1, -1]), rtol=1e-4, atol=1e-4
        )

    def test_unknown_rank(self) -> None:
        model = parse(NORM)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.ClearField("shape")
        trained = onnx_grad.training_mode(model)
        for shape in ((4, 3), (2, 3, 5)):
            x = normal(*shape)
            y = run(trained, {"x": x})["y"]
            np.testing.assert_allclose(y, normalized(x, [1, 2, 0.5], [0, 1, -1]), rtol=1e-4, atol=1e-4)

    def test_one_element_in_a_channel(self) -> None:
        """Its variance is zero, where PyTorch refuses."""
        results = run(onnx_grad.training_mode(parse(NORM)), {"x": normal(1, 3, 1, 1)})

        np.testing.assert_array_equal(results["y"].ravel(), [0, 1, -1])
        np.testing.assert_allclose(results["v_updated"], 0.9 * np.array([1, 2, 4]), rtol=1e-6)

    def test_float64(self) -> None:
        x = normal(4, 3, 5, 6, dtype=np.float64)
        results = run(onnx_grad.training_mode(parse(NORM.replace("float", "double"))), {"x": x})

        np.testing.assert_allclose(
            results["y"], normalized(x, [1, 2, 0.5], [0, 1, -1]), rtol=1e-12, atol=1e-12
        )
        assert results["v_updated"].dtype == np.float64

    def test_half_precision_is_normalized_in_single(self) -> None:
        """The mean of these values, rounded to float16, would be off by more than they differ."""
        x = (1000 + normal(8, 3, 4, 4)).astype(np.float16)
        model = parse(NORM)
        for tensor in model.graph.initializer:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        results = run(onnx_grad.training_mode(model), {"x": x})
        expected = normalized(x.astype(np.float64), [1, 2, 0.5], [0, 1, -1])

        assert results["y"].dtype == results["m_updated"].dtype == np.float16
        np.testing.assert_allclose(results["y"], expected, rtol=2e-3, atol=2e-3)

    def test_attributes_are_kept(self) -> None:
        graph = NORM.replace("BatchNormalization", "BatchNormalization <epsilon = 0.5, momentum = 0.25>")
        x = normal(4, 3, 5, 6)
        results = run(onnx_grad.training_mode(parse(graph)), {"x": x})

        np.testing.assert_allclose(
            results["y"], normalized(x, [1, 2, 0.5], [0, 1, -1], 0.5), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            results["m_updated"], 0.25 * np.array([0, 1, 2]) + 0.75 * x.mean((0, 2, 3)), rtol=1e-5
        )

    def test_layers_that_share_statistics_update_them_in_turn(self) -> None:
        graph = f"""g (float[N,3] x) => (float[N,3] y) <{STATISTICS}> {{
            h = BatchNormalization (x, scale, bias, m, v)
            y = BatchNormalization (h, scale, bias, m, v)
        }}"""
        x = normal(6, 3)
        h = normalized(x, [1, 2, 0.5], [0, 1, -1])
        model = onnx_grad.training_mode(parse(graph))

        assert output_names(model) == ["y", "m_updated", "v_updated"]
        np.testing.assert_allclose(
            run(model, {"x": x})["m_updated"],
            0.9 * (0.9 * np.array([0, 1, 2]) + 0.1 * x.mean(0)) + 0.1 * h.mean(0),
            rtol=1e-4,
        )

    def test_equal_layers_stay_two(self) -> None:
        graph = f"""g (float[N,3] x) => (float[N,3] y, float[N,3] z) <{STATISTICS}> {{
            y = BatchNormalization (x, scale, bias, m, v)
            z = BatchNormalization (x, scale, bias, m, v)
        }}"""
        results = run(onnx_grad.training_mode(parse(graph)), {"x": normal(6, 3)})

        np.testing.assert_array_equal(results["y"], results["z"])

    @pytest.mark.parametrize("opset", [7, 9, 14])
    def test_older_forms(self, opset: int) -> None:
        x = normal(4, 3, 5, 6)
        model = onnx_grad.training_mode(parse(NORM, opset=opset))

        np.testing.assert_allclose(
            run(model, {"x": x})["y"], normalized(x, [1, 2, 0.5], [0, 1, -1]), rtol=1e-4, atol=1e-5
        )

    def test_a_training_form_whose_updates_nothing_reads(self) -> None:
        """As PyTorch's older exporter writes it for a network in training: CUDA has no kernel for that."""
        graph = NORM.replace("y = BatchNormalization", "y, a, b = BatchNormalization <training_mode = 1>")
        model = onnx_grad.training_mode(parse(graph))

        assert output_names(model) == ["y", "m_updated", "v_updated"]
        assert not any(a.name == "training_mode" for node in model.graph.node for a in node.attribute)

    def test_a_training_form_whose_updates_are_read_stays(self) -> None:
        graph = NORM.replace("y = BatchNormalization", "y, a, b = BatchNormalization <training_mode = 1>")
        graph = graph.replace("(float[N,3,H,W] y)", "(float[N,3,H,W] y, float[3] a)")
        with pytest.warns(onnx_grad.NoLayerWarning):
            model = onnx_grad.training_mode(parse(graph))

        assert operators(model) == ["BatchNormalization"]


class TestGradients:
    @pytest.mark.parametrize("dtype", ["float", "double"])
    def test_agree_with_finite_differences(self, dtype: str) -> None:
        model = onnx_grad.training_mode(parse(BOTH.replace("float", dtype)))
        report = onnx_grad.check_gradients(
            model, ["x", "scale", "bias"], ["y"], dims={"N": 3}, inputs={"seed": np.array(4)}
        )

        assert report.passed

    def test_of_the_updated_statistics(self) -> None:
        report = onnx_grad.check_gradients(
            onnx_grad.training_mode(parse(NORM.replace("float", "double"))),
            ["x", "m", "v"],
            ["y", "m_updated", "v_updated"],
            dims={"N": 3, "H": 2, "W": 2},
        )

        assert report.passed

    def test_a_second_time(self) -> None:
        model = onnx_grad.training_mode(parse(NORM.replace("float", "double")))
        once = onnx_grad.vjp(model, "x", "y")
        report = onnx_grad.check_gradients(once, ["x", "scale"], ["x_grad"], dims={"N": 2, "H": 2, "W": 2})

        assert report.passed

    @pytest.mark.parametrize("named", [{"wrt": ["x", "bn/mean"]}, {"wrt": "x", "stop": "bn/mean"}], ids=str)
    def test_statistics_that_are_named_count_on_their_own(self, named: dict[str, str | list[str]]) -> None:
        """Where they are not, the rule takes the derivative through them into that by x."""
        model = onnx_grad.training_mode(parse(NORM.replace("float", "double")))
        x, dy = normal(3, 3, 2, 2, dtype=np.float64), np.cos(np.arange(36.0)).reshape(3, 3, 2, 2)
        feeds = {"x": x, "y_grad": dy}
        unmarked = onnx.ModelProto.FromString(model.SerializeToString())
        for node in unmarked.graph.node:
            del node.metadata_props[:]
        found = run(onnx_grad.vjp(model, of="y", **named), feeds)
        expected = run(onnx_grad.vjp(unmarked, of="y", **named), feeds)

        for name in found:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12)

    def test_the_short_way_is_the_same(self) -> None:
        model = onnx_grad.training_mode(parse(NORM.replace("float", "double")))
        unmarked = onnx.ModelProto.FromString(model.SerializeToString())
        for node in unmarked.graph.node:
            del node.metadata_props[:]
        x, dy = normal(3, 3, 2, 2, dtype=np.float64), np.cos(np.arange(36.0)).reshape(3, 3, 2, 2)
        short, long = (onnx_grad.vjp(m, ["x", "scale"], "y") for m in (model, unmarked))
        found, expected = (run(m, {"x": x, "y_grad": dy}) for m in (short, long))

        assert len(short.graph.node) < len(long.graph.node)
        for name in ("x_grad", "scale_grad"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12)

    def test_a_node_that_was_changed_since_is_no_longer_marked(self) -> None:
        model = onnx_grad.training_mode(parse(NORM))
        (node,) = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
        node.input[3] = "m"
        x, dy = normal(3, 3, 2, 2), normal(3, 3, 2, 2)
        result = run(onnx_grad.vjp(model, "bias", "y"), {"x": x, "y_grad": dy})

        np.testing.assert_allclose(result["bias_grad"], dy.sum((0, 2, 3)), rtol=1e-5)
        assert "m_grad" in output_names(onnx_grad.vjp(model, "m", "y"))

    def test_running_statistics_are_neither_parameters_nor_differentiated(self) -> None:
        model = onnx_grad.training_mode(parse(NORM))
        gradients = onnx_grad.vjp(model, "parameters")

        assert input_names(gradients) == ["x", "y_grad"]
        assert metadata(gradients, "gradients") == {"scale": "scale_grad", "bias": "bias_grad"}
        assert metadata(onnx_grad.vjp(model, "parameters", ["y", "m_updated"]), "gradients").keys() == {
            "scale",
            "bias",
        }

    def test_grad_finds_the_only_scalar(self) -> None:
        graph = NORM.replace("(float[N,3,H,W] y)", "(float l)").replace(
            "\n}", "\nl = ReduceMax <keepdims = 0> (y) }"
        )

        assert "x_grad" in output_names(onnx_grad.grad(onnx_grad.training_mode(parse(graph))))

    def test_the_gradient_has_the_mask_of_the_values(self) -> None:
        gradients = onnx_grad.vjp(onnx_grad.training_mode(parse(DROP)))
        x = np.ones((30, 40), np.float32)
        for seed in (0, 1):
            result = run(gradients, {"x": x, "y_grad": x, "seed": np.array(seed)})
            np.testing.assert_array_equal(result["x_grad"], result["y"])


class TestDropout:
    def test_elements_are_dropped_or_scaled(self) -> None:
        model = onnx_grad.training_mode(parse(DROP))
        x = normal(100, 100)
        y = run(model, {"x": x, "seed": np.array(0)})["y"]

        assert input_names(model) == ["x", "seed"]
        assert model.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert not model.graph.input[1].type.tensor_type.shape.dim
        assert np.mean(y == 0) == pytest.approx(0.25, abs=0.02)
        np.testing.assert_allclose(y[y != 0], x[y != 0] / 0.75, rtol=1e-6)

    @pytest.mark.parametrize(
        ("graph", "opset", "ratio"),
        [
            ("{ y = Dropout (x) }", 18, 0.5),
            ("<float r = {0.1}> { y = Dropout (x, r) }", 18, 0.1),
            ("<double r = {0.1}, bool t = {1}> { y = Dropout (x, r, t) }", 18, 0.1),
            ("{ r = Constant <value_float = 0.1> () y = Dropout (x, r) }", 18, 0.1),
            ("<float r = {1.0}> { y = Dropout (x, r) }", 18, 1.0),
            ("<float r = {0.0}> { y = Dropout (x, r) }", 18, 0.0),
            ("{ y = Dropout <ratio = 0.1> (x) }", 7, 0.1),
            ("{ y = Dropout <ratio = 0.1> (x) }", 10, 0.1),
            ("{ y = Dropout (x) }", 11, 0.5),
            ("<float r = {0.1}> { y = Dropout (x, r) }", 12, 0.1),
        ],
    )
    def test_the_ratio_of_the_node(self, graph: str, opset: int, ratio: float) -> None:
        model = onnx_grad.training_mode(parse(f"g (float[N,M] x) => (float[N,M] y) {graph}", opset=opset))
        y = run(model, {"x": np.ones((200, 200), np.float32), "seed": np.array(0)})["y"]

        assert np.mean(y == 0) == pytest.approx(ratio, abs=0.01)
        assert "Dropout" not in operators(model)

    def test_a_ratio_that_is_an_input(self) -> None:
        model = onnx_grad.training_mode(
            parse("g (float[N,M] x, float r) => (float[N,M] y) { y = Dropout (x, r) }")
        )
        for ratio in (0.0, 0.3, 0.999):
            y = run(model, {"x": np.ones((200, 200), np.float32), "r": ratio, "seed": np.array(0)})["y"]
            assert np.mean(y == 0) == pytest.approx(ratio, abs=0.01)
            np.testing.assert_allclose(y[y != 0], 1 / (1 - ratio), rtol=1e-4)

    def test_another_ratio(self) -> None:
        y = run(
            onnx_grad.training_mode(parse(DROP), dropout=0.9),
            {"x": np.ones((200, 200), np.float32), "seed": np.array(0)},
        )["y"]

        assert np.mean(y == 0) == pytest.approx(0.9, abs=0.01)

    def test_the_mask_as_an_output(self) -> None:
        graph = "g (float[N,M,K] x) => (float[N,M,K] y, bool[N,M,K] mask) { y, mask = Dropout (x) }"
        results = run(onnx_grad.training_mode(parse(graph)), {"x": normal(5, 6, 7), "seed": np.array(0)})

        np.testing.assert_array_equal(results["mask"], results["y"] != 0)

    def test_layers_have_one_seed_and_masks_of_their_own(self) -> None:
        graph = "g (float[N,M] x) => (float[N,M] y, float[N,M] z) { y = Dropout (x) z = Dropout (x) }"
        model = onnx_grad.training_mode(parse(graph))
        results = run(model, {"x": np.ones((100, 100), np.float32), "seed": np.array(0)})

        assert input_names(model) == ["x", "seed"]
        assert np.mean(results["y"] == results["z"]) == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("dtype", ["float16", "double"])
    def test_other_types(self, dtype: str) -> None:
        model = onnx_grad.training_mode(parse(DROP.replace("float[N,M]", f"{dtype}[N,M]")))
        x = np.ones(
            (9, 9), onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        )
        y = run(model, {"x": x, "seed": np.array(0)})["y"]

        assert y.dtype == x.dtype
        np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-3)


class TestInterface:
    @pytest.mark.parametrize("kind", [Path, onnx.ModelProto, ir.Model], ids=lambda kind: kind.__name__)
    def test_the_same_kind_comes_back(self, kind: type, tmp_path: Path) -> None:
        proto = parse(BOTH)
        onnx.save(proto, tmp_path / "model.onnx")
        given = {Path: tmp_path / "model.onnx", onnx.ModelProto: proto, ir.Model: ir.from_proto(proto)}[kind]
        result = onnx_grad.training_mode(given, save_as=tmp_path / "trained.onnx")
        expected = onnx.ModelProto if kind is Path else kind

        assert isinstance(result, expected)
        assert output_names(onnx.load(tmp_path / "trained.onnx")) == ["y", "m_updated", "v_updated"]
        assert proto == parse(BOTH)
        if isinstance(given, ir.Model):
            assert [node.op_type for node in given.graph] == ["BatchNormalization", "Tanh", "Dropout"]

    def test_names_and_types(self) -> None:
        model = onnx_grad.training_mode(parse(BOTH))
        onnx.checker.check_model(model, full_check=True)

        assert {"bn", "drop", "bn/mean", "bn/variance", "drop/kept", "drop/factor"} <= {
            node.name for node in model.graph.node
        }
        assert metadata(model, "training_layers") == {"bn": "BatchNormalization", "drop": "Dropout"}
        assert metadata(model, "seed") == {"dropout": "seed"}
        assert metadata(model, "updated_statistics") == {"m": "m_updated", "v": "v_updated"}
        assert {v.name for v in model.graph.value_info} >= {"h", "t", "bn/mean"}

    def test_taken_names_get_a_suffix(self) -> None:
        graph = NORM.replace("x)", "x, float seed, float m_updated)", 1).replace(
            "[bn] y = BatchNormalization (x", "h = Dropout (x) [bn] y = BatchNormalization (h"
        )
        model = onnx_grad.training_mode(parse(graph))

        assert input_names(model) == ["x", "seed", "m_updated", "seed_1"]
        assert output_names(model) == ["y", "m_updated_1", "v_updated"]

    def test_constants_that_nothing_reads_any_more_are_gone(self) -> None:
        graph = DROP.replace("{0.25}", "{0.25}, bool t = {0}").replace("x, r)", "x, r, t)")
        model = onnx_grad.training_mode(parse(graph))

        assert not {"r", "t"} & {tensor.name for tensor in model.graph.initializer}

    def test_switches(self) -> None:
        assert output_names(onnx_grad.training_mode(parse(BOTH), batch_norm=False)) == ["y"]
        assert input_names(onnx_grad.training_mode(parse(BOTH), dropout=False)) == ["x"]

    def test_layers_by_name_and_pattern(self) -> None:
        assert metadata(onnx_grad.training_mode(parse(BOTH), layers="bn"), "training_layers").keys() == {"bn"}
        assert metadata(onnx_grad.training_mode(parse(BOTH), layers=["d*"]), "training_layers").keys() == {
            "drop"
        }
        with pytest.raises(onnx_grad.UnknownNameError, match=r"no layer named 'dropp'. Did you mean 'drop'"):
            onnx_grad.training_mode(parse(BOTH), layers=["bn", "dropp"])

    def test_one_layer_after_the_other(self) -> None:
        graph = "g (float[N,M] x) => (float[N,M] y) { [a] h = Dropout (x) [b] y = Dropout (h) }"
        first = onnx_grad.training_mode(parse(graph), layers="a", dropout=0.1)
        both = onnx_grad.training_mode(first, layers="b", dropout=0.6)
        y = run(both, {"x": np.ones((100, 100), np.float32), "seed": np.array(0)})["y"]

        assert input_names(both) == ["x", "seed"]
        assert metadata(both, "training_layers").keys() == {"a", "b"}
        assert np.mean(y != 0) == pytest.approx(0.9 * 0.4, abs=0.02)

    def test_once_is_enough(self) -> None:
        model = onnx_grad.training_mode(parse(BOTH))
        with pytest.warns(onnx_grad.NoLayerWarning):
            again = onnx_grad.training_mode(model)

        assert operators(again) == operators(model)
        assert output_names(again) == output_names(model)

    @pytest.mark.parametrize(
        ("graph", "options"),
        [
            ("g (float[N] x) => (float[N] y) { y = Tanh (x) }", {}),
            (NORM, {"dropout": 0.1}),
            (NORM, {"batch_norm": False}),
            (DROP, {"dropout": False}),
        ],
    )
    def test_nothing_to_change_is_told(self, graph: str, options: dict[str, object]) -> None:
        """Exporters fold and remove layers, and what is gone cannot be had back."""
        with pytest.warns(onnx_grad.NoLayerWarning, match="Exporters"):
            onnx_grad.training_mode(parse(graph), **options)

    def test_no_warning_otherwise(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            onnx_grad.training_mode(parse(NORM))

    @pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
    def test_a_ratio_out_of_range(self, ratio: float) -> None:
        with pytest.raises(onnx_grad.InputError, match="no ratio"):
            onnx_grad.training_mode(parse(DROP), dropout=ratio)

    def test_a_ratio_in_the_model_out_of_range(self) -> None:
        with pytest.raises(onnx_grad.ModelError, match="'drop' is a Dropout with a ratio of 2"):
            onnx_grad.training_mode(parse(DROP.replace("0.25", "2.0")))

    def test_a_gradient_model(self) -> None:
        with pytest.raises(onnx_grad.ModelError, match="already holds gradients"):
            onnx_grad.training_mode(onnx_grad.vjp(parse(NORM)))

    def test_a_layer_in_a_body(self) -> None:
        graph = """g (float[N] x, bool c) => (float[N] y) {
            y = If (c) <
                then_branch = t () => (float[N] a) { [inner] a = Dropout (x) },
                else_branch = e () => (float[N] b) { b = Tanh (x) }
            >
        }"""
        with pytest.raises(onnx_grad.UnsupportedOpError, match="'inner'"):
            onnx_grad.training_mode(parse(graph))

    def test_a_layer_in_a_function(self) -> None:
        model = parse(
            "g (float[N,M] x) => (float[N,M] y) { h = custom.F (x) y = custom.F (h) }",
            extra='<domain: "custom", opset_import: ["" : 18]> F (a) => (b) { b = Dropout (a) }',
        )
        trained = onnx_grad.training_mode(model)
        y = run(trained, {"x": np.ones((100, 100), np.float32), "seed": np.array(0)})["y"]

        assert np.mean(y == 0) == pytest.approx(0.75, abs=0.03)

    def test_nothing_is_written_on_failure(self, tmp_path: Path) -> None:
        with pytest.raises(onnx_grad.InputError):
            onnx_grad.training_mode(parse(DROP), dropout=2.0, save_as=tmp_path / "out.onnx")

        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [18, 21, 26])
def test_every_operator_has_a_kernel_on_every_provider(opset: int) -> None:
    """Save for products of shapes, which ONNX Runtime computes on the CPU."""
    graph = BOTH.replace("4,4", "H,W")
    made = onnx_grad.vjp(
        onnx_grad.training_mode(parse(graph, opset=opset, ir_version=10)), ["x", "scale"], "y"
    )
    ir_model = ir.from_proto(onnx.shape_inference.infer_shapes(made))
    missing = {
        (provider, node.op_type)
        for node in ir_model.graph
        for provider in NEWEST_OPSET
        if not has_kernel(provider, node.op_type, opset, _element_type(node))
    }

    assert missing <= {("CUDA", "ReduceProd")}


def _element_type(node: ir.Node) -> str:
    dtype = next(v.dtype for v in node.inputs if v is not None)
    assert dtype is not None
    return dtype.name.lower()


class TestCommand:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        onnx.save(parse(BOTH), tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    @pytest.fixture
    def command(self) -> Callable[..., object]:
        return lambda *arguments: CliRunner().invoke(app, ["training-mode", *map(str, arguments)])

    def test_it_writes_the_model_and_tells_the_names(
        self, path: Path, command: Callable[..., object]
    ) -> None:
        out = path.with_name("out.onnx")
        result = command(path, out)

        assert result.exit_code == 0
        for name in ("bn", "drop", "seed", "m_updated", "v_updated"):
            assert name in result.stdout
        assert input_names(onnx.load(out)) == ["x", "seed"]

    def test_options(self, path: Path, command: Callable[..., object]) -> None:
        out = path.with_name("out.onnx")
        result = command(path, out, "--dropout", 0.5, "--no-batch-norm", "--layer", "dr*", "--json")

        assert json.loads(result.stdout)["training_layers"] == {"drop": "Dropout"}
        assert command(path, out, "--no-dropout").exit_code == 0
        assert input_names(onnx.load(out)) == ["x"]

    def test_nothing_to_change(self, tmp_path: Path, command: Callable[..., object]) -> None:
        onnx.save(parse("g (float[N] x) => (float[N] y) { y = Tanh (x) }"), tmp_path / "model.onnx")
        result = command(tmp_path / "model.onnx", tmp_path / "out.onnx")

        assert result.exit_code == 0
        assert "warning" in result.stderr

    @pytest.mark.parametrize(
        "options", [("--dropout", "0.5", "--no-dropout"), ("--dropout", "3"), ("--layer", "no")]
    )
    def test_bad_options(self, options: tuple[str, ...], path: Path, command: Callable[..., object]) -> None:
        assert command(path, path.with_name("out.onnx"), *options).exit_code == 2

    def test_the_model_is_not_overwritten(self, path: Path, command: Callable[..., object]) -> None:
        assert command(path, path).exit_code == 2

    def test_gradients_count_as_such(self, path: Path, command: Callable[..., object]) -> None:
        """The nodes that training mode adds are of the forward pass."""
        trained, out = path.with_name("trained.onnx"), path.with_name("out.onnx")
        command(path, trained)
        result = CliRunner().invoke(app, ["vjp", str(trained), str(out), "--json"])

        assert json.loads(result.stdout)["forward_nodes"] >= len(onnx.load(trained).graph.node)


def test_a_session_runs_it_without_complaints(capfd: pytest.CaptureFixture[str]) -> None:
    onnxruntime.InferenceSession(onnx_grad.training_mode(parse(BOTH)).SerializeToString())

    assert "Removing" not in capfd.readouterr().err
