"""Training algorithms in `training_info`: lowered with the graph they go on from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnx_grad
from tests.graphs import operators
from tests.lowering.programs import program

INFERENCE = "g (float[N,3] x) => (float[N,1] y) <float[3,1] w = {0.5, 0.1, -0.2}> { y = MatMul(x, w) }"
ALGORITHM = (
    "descent (float[N,1] t) => (float[3,1] w_new, float[3,1] v_new, int64 T_new, float loss)"
    "<float[3,1] v = {0, 0, 0}, int64 T = {0}, float rate = {0.1}, int64 one = {1}> {"
    "e = Sub(y, t) s = Mul(e, e) loss = ReduceMean<keepdims = 0>(s)"
    'dw = Gradient<xs=["w"], zs=["x", "t"], y="loss">(w, x, t) T_new = Add(T, one)'
    "w_new, v_new = Momentum<alpha = 0.5, beta = 1.0, norm_coefficient = 0.0,"
    'mode = "standard">(rate, T, w, dw, v) }'
)
BINDING = {"w": "w_new", "v": "v_new", "T": "T_new"}


def trainable(*algorithms: str, inference: str = INFERENCE, opset: int = 18) -> onnx.ModelProto:
    """A model with training algorithms."""
    model = program(inference, opset=opset)
    for algorithm in algorithms:
        info = model.training_info.add()
        info.algorithm.CopyFrom(program(algorithm, opset=opset).graph)
        for variable, value in BINDING.items():
            info.update_binding.add(key=variable, value=value)
    return model


def training_step(model: onnx.ModelProto, index: int = 0) -> onnx.ModelProto:
    """The graph of a model and of one of its algorithms joined, what is updated an input."""
    info = model.training_info[index]
    step = onnx.ModelProto()
    step.CopyFrom(model)
    del step.training_info[:]
    for field in ("node", "input", "output", "initializer"):
        getattr(step.graph, field).extend(getattr(info.algorithm, field))
    first = {tensor.name: tensor for tensor in step.graph.initializer}
    for binding in info.update_binding:
        tensor = first[binding.key]
        step.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return step


def quiet() -> onnxruntime.SessionOptions:
    """Without the advice that an initializer that is an input is no constant."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def train(step: onnx.ModelProto, steps: int) -> dict[str, np.ndarray]:
    """What the last step gives, on data of a linear function."""
    session = onnxruntime.InferenceSession(step.SerializeToString(), quiet())
    names = [value.name for value in session.get_outputs()]
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    t = x @ np.array([[1], [2], [3]], np.float32)
    values: dict[str, np.ndarray] = {}
    for _ in range(steps):
        state = {variable: values[value] for variable, value in BINDING.items() if value in values}
        values = dict(zip(names, session.run(None, {"x": x, "t": t, **state}), strict=True))
    return values


@pytest.mark.parametrize("opset", [13, 18])
def test_an_algorithm_trains_on_onnx_runtime(opset: int) -> None:
    model = trainable(ALGORITHM, opset=opset)
    lowered = onnx_grad.lower(model)
    onnx.checker.check_model(lowered)
    assert operators(lowered) == ["MatMul"]
    assert [tensor.name for tensor in lowered.graph.initializer] == ["w"]
    (info,) = lowered.training_info
    assert [value.name for value in info.algorithm.input] == ["t"]
    assert [value.name for value in info.algorithm.output] == [
        v.name for v in model.training_info[0].algorithm.output
    ]
    assert info.update_binding == model.training_info[0].update_binding
    step = training_step(lowered)
    onnx.checker.check_model(step, full_check=True)
    values = train(step, 60)
    np.testing.assert_allclose(values["w_new"].ravel(), [1, 2, 3], rtol=1e-3)
    assert values["T_new"] == 60


def test_large_weights() -> None:
    """They are left out of what is analysed, and are variables all the same."""
    x, w = "float[N,3] x", "float[3,1] w = {0.5, 0.1, -0.2}"
    values = ", ".join(["0.5"] * 400)
    model = trainable(
        ALGORITHM.replace("float[3,1]", "float[400,1]").replace("v = {0, 0, 0}", f"v = {{{values}}}"),
        inference=INFERENCE.replace(x, "float[N,400] x").replace(w, f"float[400,1] w = {{{values}}}"),
    )
    lowered = onnx_grad.lower(model)
    assert [value.name for value in lowered.graph.input] == ["x"]
    assert [value.name for value in lowered.training_info[0].algorithm.input] == ["t"]
    step = training_step(lowered)
    session = onnxruntime.InferenceSession(step.SerializeToString(), quiet())
    x, t = np.ones((2, 400), np.float32), np.zeros((2, 1), np.float32)
    (w_new,) = session.run(["w_new"], {"x": x, "t": t})
    np.testing.assert_allclose(w_new, np.full((400, 1), 0.5 - 0.1 * (0.25 + 400)), rtol=1e-5)


def test_what_training_changes_is_not_taken_for_constant() -> None:
    """The exponent of a power decides which formula its gradient has, where it is known."""
    algorithm = (
        "a (float t) => (float d, float p_new) <float p = {1}, float one = {1}>"
        '{ q = Pow(y, p) d = Gradient<xs=["y"], y="q">(y) p_new = Add(p, one) }'
    )
    model = program("g (float x) => (float y) { y = Add(x, x) }")
    info = model.training_info.add()
    info.algorithm.CopyFrom(program(algorithm).graph)
    info.update_binding.add(key="p", value="p_new")
    step = training_step(onnx_grad.lower(model))
    session = onnxruntime.InferenceSession(step.SerializeToString(), quiet())
    three = np.array(3, np.float32)
    (d,) = session.run(["d"], {"x": three, "t": three, "p": three})
    np.testing.assert_allclose(d, 3 * 6.0**2, rtol=1e-6)


def test_several_algorithms() -> None:
    second = ALGORITHM.replace("descent", "slow").replace("rate = {0.1}", "rate = {0.0}")
    lowered = onnx_grad.lower(trainable(ALGORITHM, second))
    assert operators(lowered) == ["MatMul"]
    fast, slow = (train(training_step(lowered, index), 10)["loss"] for index in range(2))
    assert fast < slow / 2
    with pytest.raises(onnx_grad.ModelError, match="2 training algorithms and an opset below 18"):
        onnx_grad.lower(trainable(ALGORITHM, second, opset=13))


def test_training_operators_in_both_graphs() -> None:
    inference = (
        "g (float[N,3] x) => (float[N,1] y, float[N,3] dx) <float[3,1] w = {0.5, 0.1, -0.2}>"
        '{ y = MatMul(x, w) dx = Gradient<xs=["x"], y="y">(x) }'
    )
    lowered = onnx_grad.lower(trainable(ALGORITHM, inference=inference))
    without = onnx.ModelProto()
    without.CopyFrom(lowered)
    del without.training_info[:]
    session = onnxruntime.InferenceSession(without.SerializeToString())
    (dx,) = session.run(["dx"], {"x": np.zeros((2, 3), np.float32)})
    np.testing.assert_allclose(dx, [[0.5, 0.1, -0.2]] * 2, rtol=1e-6)
    np.testing.assert_allclose(train(training_step(lowered), 60)["w_new"].ravel(), [1, 2, 3], rtol=1e-3)


def test_initialization_is_lifted_with_the_rest() -> None:
    model = trainable(ALGORITHM, opset=12)
    first = onnx.parser.parse_graph(
        "i () => (float[3,1] w0) { s = Constant<value_ints = [3]>() z = ConstantOfShape(s)"
        "w0 = Unsqueeze<axes = [1]>(z) }"
    )
    model.training_info[0].initialization.CopyFrom(first)
    model.training_info[0].initialization_binding.add(key="w", value="w0")
    initialization = onnx_grad.lower(model).training_info[0].initialization
    runnable = onnx.helper.make_model(
        initialization, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    (w0,) = onnxruntime.InferenceSession(runnable.SerializeToString()).run(None, {})
    np.testing.assert_array_equal(w0, np.zeros((3, 1)))


def test_files_with_external_weights(tmp_path: Path) -> None:
    model = trainable(ALGORITHM)
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), "w"))
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    onnx_grad.lower(tmp_path / "in.onnx", save_as=tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert saved.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    (info,) = onnx.load(tmp_path / "out.onnx").training_info
    assert {node.domain for node in info.algorithm.node} == {""}


def test_a_name_that_both_graphs_define() -> None:
    with pytest.raises(onnx_grad.ModelError, match="both define 'w'"):
        onnx_grad.lower(
            trainable(ALGORITHM.replace("float[3,1] v =", "float[3,1] w = {0, 0, 0}, float[3,1] v ="))
        )


def test_an_error_in_an_algorithm_writes_nothing(tmp_path: Path) -> None:
    model = trainable(ALGORITHM.replace('y="loss"', 'y="los"'))
    with pytest.raises(onnx_grad.UnknownNameError, match="'loss'"):
        onnx_grad.lower(model, save_as=tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_models_of_onnx_ir_have_no_training_info() -> None:
    result = onnx_grad.lower(ir.from_proto(trainable(ALGORITHM)))
    assert isinstance(result, ir.Model)
