"""Lifting old files to opset 18: where onnx's version converter is wrong, and what has to stay as it was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.prepare.lift import lift
from tests.graphs import operators, parse

# Of these graphs the converter makes something that computes other values.
ANOTHER_VALUE = {
    "Hardmax keeps its axis": (12, "g (float[2,3] x) => (float[2,3] y) { y = Hardmax<axis=0>(x) }"),
    "Resize rounds another way": (
        10,
        """g (float[1,2,4,5] x) => (float[1,2,3,3] y) {
            scales = Constant<value = float[4] {1., 1., 0.75, 0.75}>()
            y = Resize(x, scales)
        }""",
    ),
    "Upsample counts from another corner": (
        7,
        "g (float[1,2,4,5] x) => (float[1,2,6,8] y) { y = Upsample<scales=[1., 1., 1.6, 1.6]>(x) }",
    ),
    "a subgraph": (
        9,
        """g (float[1,2,4,5] x, bool c) => (float[1,2,6,8] y) {
            scales = Constant<value = float[4] {1., 1., 1.6, 1.6}>()
            y = If<then_branch = t () => (float[1,2,6,8] p) { p = Upsample<mode="linear">(x, scales) },
                   else_branch = e () => (float[1,2,6,8] q) { r = Upsample(x, scales) q = Neg(r) }>(c)
        }""",
    ),
    "the mask of Dropout": (10, "g (float[2,3] x) => (float[2,3] y, bool[2,3] m) { y, m = Dropout(x) }"),
}

# These it refuses, or makes of them what ONNX Runtime rejects.
NO_MODEL = {
    "Resize to sizes": (
        11,
        """g (float[1,2,4,5] x, float[0] none) => (float[1,2,6,3] y) {
            sizes = Constant<value = int64[4] {1, 2, 6, 3}>()
            y = Resize<mode="linear">(x, none, none, sizes)
        }""",
    ),
    "the value of Pad in float64": (
        9,
        "g (double[2,3] x) => (double[2,5] y) { y = Pad<pads=[0, 1, 0, 1], value=2.>(x) }",
    ),
    "the value of Pad by reflection": (
        9,
        """g (float[2,3] x) => (float[2,5] y) { y = Pad<pads=[0, 1, 0, 1], mode="reflect", value=2.>(x) }""",
    ),
    "Softmax of nothing": (9, "g (float[2,3,0] x) => (float[2,3,0] y) { y = Softmax<axis=1>(x) }"),
    "BatchNormalization in training mode": (
        9,
        """g (float[1,2,4,5] x, float[2] a, float[2] b, float[2] m, float[2] v)
            => (float[1,2,4,5] y, float[2] m1, float[2] v1, float[2] m2, float[2] v2)
            { y, m1, v1, m2, v2 = BatchNormalization(x, a, b, m, v) }""",
    ),
    "BatchNormalization of elements": (
        7,
        """g (float[2,3] x, float[3] a, float[3] b, float[3] m, float[3] v) => (float[2,3] y)
            { y = BatchNormalization<spatial=0>(x, a, b, m, v) }""",
    ),
    "the mask of Dropout as a number": (
        7,
        "g (float[2,3] x) => (float[2,3] y, float[2,3] m) { y, m = Dropout(x) }",
    ),
}


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Something positive for each input."""
    generator = np.random.default_rng(0)
    result = {}
    for value in model.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        result[value.name] = np.asarray(generator.uniform(0.1, 2, shape)).astype(dtype)
    return result


def compute(model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, feeds(model) if inputs is None else inputs))


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """What onnx's converter makes of `model`, with the outputs that it had."""
    result = onnx.version_converter.convert_version(model, 18)
    del result.graph.output[:]
    result.graph.output.extend(model.graph.output)
    return result


def assert_same(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class TestWhereTheConverterIsWrong:
    @pytest.mark.parametrize("name", ANOTHER_VALUE)
    def test_another_value(self, name: str) -> None:
        opset, graph = ANOTHER_VALUE[name]
        model = parse(graph, opset=opset)
        expected = compute(model)
        assert_same(compute(lift(model)), expected)
        theirs = compute(converted(model))
        assert any(not np.allclose(a, b) for a, b in zip(theirs, expected, strict=True))

    @pytest.mark.parametrize("name", NO_MODEL)
    def test_no_model(self, name: str) -> None:
        opset, graph = NO_MODEL[name]
        model = parse(graph, opset=opset)
        assert_same(compute(lift(model)), compute(model))
        failures = (
            RuntimeError,
            onnx.version_converter.ConvertError,
            onnxruntime.capi.onnxruntime_pybind11_state.Fail,
            onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
        )
        with pytest.raises(failures):
            compute(converted(model))

    @pytest.mark.parametrize(
        ("opset", "graph"),
        [
            (
                9,
                "g (float[2,3] x, int64[1,3] i) => (float[2,3] y) { h = Scatter(x, i, x) y = Relu(h) }",
            ),
            (7, "g (float[2,3] x) => (float[2,6] y) { h = Upsample<scales=[1., 2.]>(x) y = Relu(h) }"),
        ],
        ids=["Scatter", "Upsample"],
    )
    def test_forgotten_names(self, opset: int, graph: str) -> None:
        model = parse(graph, opset=opset)
        names = {name for node in converted(model).graph.node for name in node.output}
        assert "h" not in names
        assert onnx_grad.vjp(model, "h", "y").graph.output[-1].name == "h_grad"

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
    def test_constants_are_of_the_type_of_the_data(self, dtype: str) -> None:
        # ONNX Runtime has no kernel of that time for them, but it has those of opset 18.
        graph = (
            f"g ({dtype}[3] x) => ({dtype}[5] y) {{ h = Clip<min=0.5, max=1.>(x) y = Pad<pads=[1, 1]>(h) }}"
        )
        lifted = onnx.shape_inference.infer_shapes(lift(parse(graph, opset=9)), strict_mode=True)
        types = {v.type.tensor_type.elem_type for v in lifted.graph.value_info if v.name != "y/pads"}
        assert types == {lifted.graph.input[0].type.tensor_type.elem_type}


def test_a_sparse_constant() -> None:
    values = onnx.helper.make_tensor("values", onnx.TensorProto.FLOAT, [1], [2.0])
    positions = onnx.helper.make_tensor("positions", onnx.TensorProto.INT64, [1], [1])
    for opset in (12, 18):
        model = parse("g (float[3] x) => (float[3] y) { y = Mul(x, c) }", opset=opset)
        sparse = onnx.helper.make_sparse_tensor(values, positions, [3])
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse))
        x = np.ones(3, np.float32)
        np.testing.assert_array_equal(compute(onnx_grad.vjp(model), {"x": x, "y_grad": x})[1], [0, 2, 0])


class TestWhatStays:
    def test_names_that_are_numbers(self) -> None:
        """As the files of old exporters have; new nodes must not take one of them."""
        model = parse(
            "g (float[2,3] x) => (float[2,3] y) { n1 = Relu(x) n2 = Clip<min=0.1>(n1) "
            "n3 = Softmax<axis=0>(n2) n4 = Unsqueeze<axes=[0]>(n3) n5 = Squeeze<axes=[0]>(n4) y = Relu(n5) }",
            opset=9,
        )
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [name.removeprefix("n") for name in names]
        lifted = lift(model)
        produced = [name for node in lifted.graph.node for name in node.output]
        assert len(set(produced)) == len(produced)
        assert {"1", "2", "3", "4", "5"} <= set(produced)
        assert_same(compute(lifted), compute(model))

    def test_the_domain_by_its_long_name(self) -> None:
        model = parse("g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis=0>(x) }", opset=9)
        model.opset_import[0].domain = "ai.onnx"
        assert_same(compute(lift(model)), compute(model))

    def test_nodes_that_nothing_reads(self) -> None:
        model = parse(
            "g (float[2,3] x) => (float[2,3] y) "
            "{ a = Upsample<scales=[1., 2.]>(x) b, c = TopK<k=2>(x) y = Relu(x) }",
            opset=7,
        )
        assert sorted(set(operators(lift(model))) - {"Constant"}) == ["Relu", "Resize", "TopK"]

    def test_nodes_of_another_domain(self) -> None:
        model = parse(
            "g (float[2,3] x) => (float[2,3] y) { a = custom.F(x) b = Softmax<axis=0>(a) y = custom.F(b) }",
            opset=9,
        )
        model.graph.value_info.add(name="b").type.CopyFrom(model.graph.input[0].type)
        assert operators(onnx_grad.vjp(model, "a", "b")).count("F") == 2

    def test_large_weights_of_a_file_that_lists_them_as_inputs(self) -> None:
        model = parse(
            "g (float[N,300] x, float[300,4] w) => (float[N,4] y) "
            "{ a = MatMul(x, w) b = Unsqueeze<axes=[0]>(a) c = Squeeze<axes=[0]>(b) y = Softmax<axis=1>(c) }",
            opset=8,
            ir_version=3,
        )
        weight = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        x = np.random.default_rng(1).standard_normal((2, 300)).astype(np.float32)
        result = onnx_grad.vjp(model, "w")
        assert [value.name for value in result.graph.input] == ["x", "y_grad"]
        y, _ = compute(result, {"x": x, "y_grad": np.ones((2, 4), np.float32)})
        assert_same([y], compute(model, {"x": x}))


class TestFunctionsThatHaveARule:
    """They stay functions, so that their bodies are lifted with the model."""

    @pytest.fixture(autouse=True)
    def rule(self) -> Iterator[None]:
        onnx_grad.gradient("F", domain="custom")(lambda op, node, dy: dy)
        yield
        registry.unregister("F", "custom")

    @pytest.mark.parametrize(
        "body",
        [
            "F (p) => (q) { q = Softmax<axis=0>(p) }",
            "F (p) => (q) { r = ReduceSum<axes=[0]>(p) q = Mul(r, p) }",
            "F <slope>(p) => (q) "
            "{ r = ReduceSum<axes=[0]>(p) s = Sub(p, r) q = LeakyRelu<alpha: float=@slope>(s) }",
        ],
        ids=["converter is wrong", "converter is right", "attribute from the caller"],
    )
    def test_is_lifted(self, body: str) -> None:
        attribute = "<slope=0.25>" if "slope" in body else ""
        model = parse(
            f"g (float[2,3] x) => (float[2,3] y) {{ y = custom.F{attribute}(x) }}",
            opset=11,
            extra=f'<opset_import: ["" : 11], domain: "custom"> {body}',
        )
        x = np.array([[0.5, -1.0, 2.0], [0.25, 1.5, -0.75]], np.float32)
        result = onnx_grad.vjp(model)
        assert "F" in operators(result)
        assert_same(compute(result, {"x": x, "y_grad": x}), [*compute(model, {"x": x}), x])

    def test_cannot_be_lifted(self) -> None:
        model = parse(
            "g (float[2,3] x) => (float[2,3] y) { y = custom.F<where=0>(x) }",
            opset=11,
            extra='<opset_import: ["" : 11], domain: "custom"> '
            "F <where>(p) => (q) { q = Softmax<axis: int=@where>(p) }",
        )
        with pytest.raises(
            onnx_grad.ModelError, match="'F' of domain 'custom' uses opset 11, and its Softmax"
        ):
            onnx_grad.vjp(model)
