"""What `vjp` and `grad` promise about names, kinds, requests and unusual graphs."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from tests.graphs import input_names, operators, output_names, parse, run

PRODUCT = "g (float[N] x, float[N] w) => (float[N] y) { h = Mul(x, w) y = Mul(h, h) }"


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


class TestInterface:
    def test_inputs_then_cotangents_outputs_then_gradients(self) -> None:
        model = onnx_grad.vjp(parse(PRODUCT))
        assert input_names(model) == ["x", "w", "y_grad"]
        assert output_names(model) == ["y", "x_grad", "w_grad"]

    def test_gradients_have_the_shape_and_type_of_their_tensor(self) -> None:
        model = onnx_grad.vjp(parse("g (double[N,3] x, double y) => (double[N,3] z) { z = Mul(x, y) }"))
        types = {value.name: value.type for value in (*model.graph.input, *model.graph.output)}
        assert types["x_grad"] == types["x"]
        assert types["y_grad"] == types["y"]
        assert types["z_grad"] == types["z"]

    def test_order_of_wrt_and_of_is_kept(self) -> None:
        model = onnx_grad.vjp(parse(PRODUCT), wrt=["w", "h", "x"], of=["h", "y"])
        assert input_names(model)[2:] == ["h_grad", "y_grad"]
        assert output_names(model)[1:] == ["w_grad", "h_grad_1", "x_grad"]

    def test_taken_names_get_a_suffix_and_the_metadata_tells(self) -> None:
        model = onnx_grad.vjp(
            parse("g (float x, float x_grad) => (float y) { y = Mul(x, x_grad) }"), wrt=["x"]
        )
        assert output_names(model) == ["y", "x_grad_1"]
        assert json.loads(metadata(model)["pkg.onnx_grad.gradients"]) == {"x": "x_grad_1"}
        assert json.loads(metadata(model)["pkg.onnx_grad.cotangents"]) == {"y": "y_grad"}

    def test_grad_needs_no_cotangent(self) -> None:
        model = onnx_grad.grad(parse("g (float[1,1] x) => (float[1,1] y) { y = Mul(x, x) }"))
        assert input_names(model) == ["x"]
        np.testing.assert_array_equal(run(model, {"x": [[3.0]]})["x_grad"], [[6.0]])

    def test_grad_refuses_more_than_one_element(self) -> None:
        with pytest.raises(onnx_grad.NotDifferentiableError, match=r"'y' has shape \[2\].*vjp"):
            onnx_grad.grad(parse("g (float[2] x) => (float[2] y) { y = Mul(x, x) }"))

    def test_grad_of_unknown_size_fails_when_it_runs_with_more_than_one_element(self) -> None:
        model = onnx_grad.grad(parse("g (float[N] x) => (float[N] y) { y = Mul(x, x) }"))
        np.testing.assert_array_equal(run(model, {"x": [3.0]})["x_grad"], [6.0])
        with pytest.raises(Exception, match="Reshape"):
            run(model, {"x": [3.0, 4.0]})

    def test_grad_refuses_several_outputs(self) -> None:
        model = parse("g (float x) => (float y, float z) { y = Mul(x, x) z = Add(x, x) }")
        with pytest.raises(onnx_grad.NotDifferentiableError, match="'y', 'z'"):
            onnx_grad.grad(model)
        assert output_names(onnx_grad.grad(model, of="z")) == ["y", "z", "x_grad"]


class TestKinds:
    def test_a_proto_gives_a_proto_and_stays_as_it_was(self) -> None:
        model = parse(PRODUCT)
        before = model.SerializeToString()
        assert isinstance(onnx_grad.vjp(model), onnx.ModelProto)
        assert model.SerializeToString() == before

    def test_an_ir_model_gives_an_ir_model_and_stays_as_it_was(self) -> None:
        model = ir.from_proto(parse(PRODUCT))
        before = ir.to_proto(model).SerializeToString()
        result = onnx_grad.vjp(model)
        assert isinstance(result, ir.Model)
        assert all(v.shape is not None and v.dtype for node in result.graph for v in node.outputs)
        assert ir.to_proto(model).SerializeToString() == before
        onnx.checker.check_model(ir.to_proto(result), full_check=True)

    def test_a_path_gives_a_proto(self, tmp_path) -> None:
        onnx.save(parse(PRODUCT), tmp_path / "model.onnx")
        result = onnx_grad.vjp(tmp_path / "model.onnx", save_as=tmp_path / "gradient.onnx")
        assert output_names(onnx.load(tmp_path / "gradient.onnx")) == output_names(result)

    def test_anything_else_is_refused(self) -> None:
        with pytest.raises(onnx_grad.ModelError, match="not int"):
            onnx_grad.vjp(3)


class TestRequests:
    def test_initializers_and_parameters(self) -> None:
        model = parse(
            "g (float[2] x) => (float[2] y) "
            "<float[2] w = {1, 2}, float scale = {3}, int64[1] shape = {2}> "
            "{ h = Mul(x, w) s = Mul(h, scale) y = Reshape(s, shape) }"
        )
        assert output_names(onnx_grad.vjp(model, wrt="parameters")) == ["y", "w_grad"]
        values = run(onnx_grad.vjp(model, wrt=["scale", "w"]), {"x": [5, 7], "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["w_grad"], [15, 21])
        np.testing.assert_array_equal(values["scale_grad"], 19)

    def test_parameters_without_a_path_are_left_out(self) -> None:
        model = parse(
            "g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}, float[2] v = {1, 2}> "
            "{ y = Mul(x, w) z = Mul(x, v) }"
        )
        assert output_names(onnx_grad.vjp(model, wrt="parameters", of="y")) == ["y", "z", "w_grad"]

    def test_a_model_without_parameters(self) -> None:
        with pytest.raises(onnx_grad.NotDifferentiableError, match="parameter"):
            onnx_grad.vjp(parse(PRODUCT), wrt="parameters")

    def test_intermediate_tensors(self) -> None:
        values = run(onnx_grad.vjp(parse(PRODUCT), wrt=["h", "x"]), {"x": [2], "w": [3], "y_grad": [1]})
        np.testing.assert_array_equal(values["h_grad"], [12])
        np.testing.assert_array_equal(values["x_grad"], [36])
        values = run(onnx_grad.vjp(parse(PRODUCT), of="h"), {"x": [2], "w": [3], "h_grad": [1]})
        np.testing.assert_array_equal(values["x_grad"], [3])
        np.testing.assert_array_equal(values["y"], [36])

    def test_stop_cuts_the_flow(self) -> None:
        model = parse("g (float x) => (float y) { h = Mul(x, x) y = Mul(h, x) }")
        values = run(onnx_grad.vjp(model, stop=["h"]), {"x": 3, "y_grad": 1})
        assert values["x_grad"] == 9
        values = run(onnx_grad.vjp(model, wrt=["x", "h"], stop="h"), {"x": 3, "y_grad": 1})
        assert (values["x_grad"], values["h_grad"]) == (9, 3)

    def test_no_path_gives_zeros_and_a_warning(self) -> None:
        model = parse("g (float[2] x, float[N] unused) => (float[2] y) { y = Mul(x, x) }")
        with pytest.warns(onnx_grad.NoPathWarning, match="'unused'"):
            transformed = onnx_grad.vjp(model)
        values = run(transformed, {"x": [1, 2], "unused": [1, 2, 3], "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["unused_grad"], [0, 0, 0])

    def test_unknown_names_are_met_with_near_ones(self) -> None:
        model = parse("g (float image) => (float logits) { logits = Mul(image, image) }")
        with pytest.raises(onnx_grad.UnknownNameError, match=r"wrt.*'imgae'.*'image'"):
            onnx_grad.vjp(model, wrt="imgae")
        with pytest.raises(onnx_grad.UnknownNameError, match="stop"):
            onnx_grad.vjp(model, stop=["nothing"])
        with pytest.raises(onnx_grad.UnknownNameError, match="empty"):
            onnx_grad.vjp(model, wrt=[])

    def test_integers_have_no_derivative(self) -> None:
        model = parse("g (float[2] x, int64[2] n) => (float[2] y) { f = Cast<to=1>(n) y = Mul(x, f) }")
        with pytest.raises(onnx_grad.NotDifferentiableError, match="'n' is of type INT64"):
            onnx_grad.vjp(model, wrt="n")
        assert output_names(onnx_grad.vjp(model)) == ["y", "x_grad"]


class TestUnusualGraphs:
    @pytest.mark.parametrize("ir_version", [3, 4, 8])
    def test_initializers_among_the_inputs(self, ir_version: int) -> None:
        """They have a default value, so they are weights and not what wrt=None means."""
        model = parse(
            "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {3, 4}> { y = Mul(x, w) }",
            ir_version=ir_version,
        )
        by_default = onnx_grad.vjp(model)
        assert output_names(by_default) == ["y", "x_grad"]
        weights = onnx_grad.vjp(model, wrt="parameters")
        values = run(weights, {"x": [5, 6], "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["w_grad"], [5, 6])
        if ir_version == 3:  # every initializer had to be listed, and ONNX Runtime keeps them constant
            assert input_names(by_default) == ["x", "y_grad"]
            return
        values = run(by_default, {"x": [5, 6], "w": [7, 8], "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["x_grad"], [7, 8])

    def test_several_outputs_one_of_them_used_inside(self) -> None:
        model = parse("g (float x) => (float y, float z) { y = Mul(x, x) z = Mul(y, x) }")
        values = run(onnx_grad.vjp(model), {"x": 3, "y_grad": 1, "z_grad": 1})
        assert values["x_grad"] == 6 + 27

    def test_an_input_that_is_an_output(self) -> None:
        model = parse("g (float x) => (float x, float y) { y = Mul(x, x) }")
        transformed = onnx_grad.vjp(model)
        onnx.checker.check_model(transformed, full_check=True)
        cotangent = json.loads(metadata(transformed)["pkg.onnx_grad.cotangents"])["x"]
        gradient = json.loads(metadata(transformed)["pkg.onnx_grad.gradients"])["x"]
        values = run(transformed, {"x": 3, cotangent: 10, "y_grad": 1})
        assert values[gradient] == 16

    def test_a_gradient_that_is_the_cotangent_itself(self) -> None:
        model = parse("g (float[2] a, float[2] b) => (float[2] z) { z = Add(a, b) }")
        values = run(onnx_grad.vjp(model), {"a": [1, 2], "b": [3, 4], "z_grad": [5, 6]})
        np.testing.assert_array_equal(values["a_grad"], [5, 6])
        np.testing.assert_array_equal(values["b_grad"], [5, 6])

    @pytest.mark.parametrize("names", [["", ""], ["same", "same"]])
    def test_missing_and_repeated_node_names(self, names: list[str]) -> None:
        model = parse(PRODUCT)
        for node, name in zip(model.graph.node, names, strict=True):
            node.name = name
        transformed = onnx_grad.vjp(model)
        given = [node.name for node in transformed.graph.node]
        assert len(set(given)) == len(given)
        assert all(given)
        assert run(transformed, {"x": [2], "w": [3], "y_grad": [1]})["x_grad"] == 36

    def test_absent_optional_inputs(self) -> None:
        model = parse('g (float[2] x, float top) => (float[2] y) { y = Clip(x, "", top) }')
        values = run(onnx_grad.vjp(model, wrt="x"), {"x": [1, 3], "top": 2, "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["x_grad"], [1, 0])

    def test_sparse_initializers(self) -> None:
        model = parse("g (float[4] x) => (float[4] y) { y = Mul(x, w) }")
        model.graph.sparse_initializer.append(
            onnx.helper.make_sparse_tensor(
                onnx.numpy_helper.from_array(np.array([5, 7], np.float32), "w"),
                onnx.numpy_helper.from_array(np.array([1, 3])),
                [4],
            )
        )
        values = run(onnx_grad.vjp(model, wrt=["x", "w"]), {"x": [1, 2, 3, 4], "y_grad": [1, 1, 1, 1]})
        np.testing.assert_array_equal(values["x_grad"], [0, 5, 0, 7])
        np.testing.assert_array_equal(values["w_grad"], [1, 2, 3, 4])

    def test_what_only_a_branch_captures_gets_its_gradient(self) -> None:
        """Nothing enters the `If` but through capture: it must be seen, not silently zero."""
        model = parse(
            "g (bool c, float x) => (float y) { "
            "h = Mul(x, x) y = If(c) <"
            "then_branch = t () => (float a) { a = Mul(h, h) }, "
            "else_branch = e () => (float b) { b = Identity(h) }> }"
        )
        gradient = onnx_grad.vjp(model)
        assert run(gradient, {"c": np.array(True), "x": 2, "y_grad": 1})["x_grad"] == 32
        assert run(gradient, {"c": np.array(False), "x": 2, "y_grad": 1})["x_grad"] == 4

    def test_unsorted_nodes_are_sorted(self) -> None:
        model = parse(PRODUCT)
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(model.graph.node)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        assert run(onnx_grad.vjp(model), {"x": [2], "w": [3], "y_grad": [1]})["x_grad"] == 36

    def test_local_functions_are_expanded(self) -> None:
        model = parse(
            "g (float[N] x) => (float[N] y) { y = custom.square (x) }",
            extra='<domain: "custom", opset_import: ["" : 18]> square (a) => (b) { b = Mul(a, a) }',
        )
        values = run(onnx_grad.vjp(model), {"x": [1, 2], "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["x_grad"], [2, 4])

    def test_old_opsets_keep_names_and_unknown_ranks(self) -> None:
        model = parse("g (float[N] x) => (float y) { [first] h = Mul(x, x) y = Squeeze(h) }", opset=11)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        transformed = onnx_grad.vjp(model)
        assert transformed.graph.node[0].name == "first"
        assert not transformed.graph.output[0].type.tensor_type.HasField("shape")
        assert run(transformed, {"x": [3], "y_grad": 1})["x_grad"] == 6


class TestResult:
    def test_names_tell_the_node_and_the_input(self) -> None:
        model = parse("g (float[N,3] a, float[3] b) => (float[N,3] z) { [bias] z = Add(a, b) }")
        nodes = {node.name: node for node in onnx_grad.vjp(model).graph.node}
        assert nodes["bias/dB"].op_type == "ReduceSum"
        notes = {entry.key: entry.value for entry in nodes["bias/dB"].metadata_props}
        assert notes == {"pkg.onnx_grad.forward_node": "bias", "pkg.onnx_grad.rule": "Add"}

    def test_every_value_carries_its_shape_and_type(self) -> None:
        transformed = onnx_grad.vjp(parse("g (float[N,3] a, float b) => (float[N,3] z) { z = Mul(a, b) }"))
        known = {v.name for v in (*transformed.graph.value_info, *transformed.graph.output)}
        assert {name for node in transformed.graph.node for name in node.output} <= known

    def test_equal_nodes_are_built_once_and_dead_ones_not_at_all(self) -> None:
        model = parse("g (float[N] x, float[N] w) => (float[N] y) { h = Mul(x, w) y = Mul(h, h) }")
        assert operators(onnx_grad.vjp(model, wrt="x")) == ["Mul", "Mul", "Mul", "Add", "Mul"]

    def test_forward_nodes_are_as_before(self) -> None:
        model = parse(PRODUCT)
        transformed = onnx_grad.vjp(model)
        before, after = model.graph.node, transformed.graph.node[: len(model.graph.node)]
        assert [(n.op_type, n.input, n.output) for n in after] == [
            (n.op_type, n.input, n.output) for n in before
        ]

    def test_gradients_of_gradients(self) -> None:
        model = parse("g (float x) => (float y) { h = Mul(x, x) y = Mul(h, x) }")
        twice = onnx_grad.grad(onnx_grad.grad(model), of="x_grad")
        thrice = onnx_grad.grad(twice, of="x_grad_1")
        values = run(thrice, {"x": 5})
        assert [values[name] for name in output_names(thrice)] == [125, 75, 30, 6]


class TestCustomRules:
    @pytest.fixture(autouse=True)
    def _forget(self):
        yield
        onnx_grad.registry.unregister("Cube", domain="custom")

    MODEL = "g (float[N] x) => (float[N] y) { y = custom.Cube (x) }"

    def test_a_rule_for_an_operator_of_ones_own(self) -> None:
        @onnx_grad.gradient("Cube", domain="custom")
        def cube(op, node, dy):
            (x,) = node.inputs
            return 3.0 * dy * x * x

        model = parse(self.MODEL)
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N"]))
        transformed = onnx_grad.vjp(model)
        assert operators(transformed) == ["Cube", "Mul", "Mul", "Mul"]

    def test_without_a_rule_it_is_refused_by_name(self) -> None:
        with pytest.raises(onnx_grad.UnsupportedOpError, match=r"'y' \(Cube\).*@onnx_grad.gradient"):
            onnx_grad.vjp(parse(self.MODEL))

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (lambda dy: (dy, dy), "2 cotangents for 1 inputs"),
            (lambda dy: (1.0,), "a float as cotangent of input 0"),
        ],
    )
    def test_a_rule_that_breaks_its_contract(self, result, message: str) -> None:
        onnx_grad.gradient("Cube", domain="custom")(lambda op, node, dy: result(dy))
        with pytest.raises(onnx_grad.RuleError, match=message):
            onnx_grad.vjp(parse(self.MODEL))


def test_threads_do_not_see_each_other() -> None:
    models = [
        parse(f"g (float[N] x{i}) => (float[N] y) {{ h = Mul(x{i}, x{i}) y = Sub(h, x{i}) }}")
        for i in range(24)
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(onnx_grad.vjp, models))
    for model, result in zip(models, together, strict=True):
        assert result.SerializeToString(deterministic=True) == onnx_grad.vjp(model).SerializeToString(
            deterministic=True
        )


def test_no_warning_when_every_gradient_flows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx_grad.vjp(parse(PRODUCT))


class TestQuantised:
    """Rounded numbers have no useful derivative: refused by name, never zeros without a word."""

    @pytest.mark.parametrize(
        "body",
        [
            "q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero)",
            "q = QuantizeLinear(x, scale, zero) r = Reshape(q, shape) y = DequantizeLinear(r, scale, zero)",
            "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)",
            "q = QuantizeLinear(x, scale, zero) i = MatMulInteger(q, q) y = Cast<to=1>(i)",
        ],
    )
    def test_is_refused_by_name(self, body: str) -> None:
        model = parse(
            "g (float[2,2] x) => (float[2,2] y) "
            "<float scale = {0.1}, uint8 zero = {0}, int64[2] shape = {2, 2}> { " + body + " }"
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match=r"\((Dynamic)?Quantize"):
            onnx_grad.vjp(model, wrt="x")

    def test_an_integer_on_purpose_ends_the_path(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { i = Cast<to=7>(x) f = Cast<to=1>(i) y = Mul(x, f) }")
        values = run(onnx_grad.vjp(model), {"x": [2.5, 3.5], "y_grad": [1, 1]})
        np.testing.assert_array_equal(values["x_grad"], [2, 3])


def test_the_graph_is_let_go_of_at_once() -> None:
    """Walks that look for singularities remember values of the graph."""
    model = parse("g (float[N] x) => (float[N] y) { r = Relu (x) y = Sqrt (r) }")
    gc.collect()
    before = sum(type(thing) is ir.Node for thing in gc.get_objects())
    onnx_grad.vjp(model)
    gc.collect()
    assert sum(type(thing) is ir.Node for thing in gc.get_objects()) == before


def test_forward_nodes_stay_as_they_are() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { [c] c = Constant <value = float two {2}> () [p] y = Pow (x, c) }"
    )
    for node in model.graph.node:
        node.ClearField("domain")
    gradient = onnx_grad.vjp(model)
    assert [node for node in gradient.graph.node if node.name in ("c", "p")] == list(model.graph.node)
