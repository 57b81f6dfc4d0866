"""The optimizers, lowered: against onnx's reference evaluator and PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_grad
from tests.graphs import run
from tests.lowering.programs import DOMAIN, program

KINDS = {"Adam": "xgvh", "Adagrad": "xgh", "Momentum": "xgv"}
COEFFICIENT = st.sampled_from([0.0, 0.125, 0.9, 0.95, 0.999])
ATTRIBUTES = {
    "Adam": {"alpha": COEFFICIENT, "beta": COEFFICIENT, "norm_coefficient_post": st.sampled_from([0.0, 0.1])},
    "Adagrad": {"decay_factor": st.sampled_from([0.0, 0.1])},
    "Momentum": {
        "alpha": COEFFICIENT,
        "beta": st.sampled_from([0.5, 1.0]),
        "mode": st.sampled_from(["standard", "nesterov"]),
    },
}


def step(operator: str, count: int, dtype: type, **attributes: Any) -> onnx.ModelProto:
    """One step of an optimizer for some tensors of unknown shapes."""
    kinds = KINDS[operator]
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [f"{kind}{index}" for kind in kinds for index in range(count)]
    outputs = [f"{kind}{index}_new" for kind in kinds if kind != "g" for index in range(count)]
    node = onnx.helper.make_node(operator, ["R", "T", *inputs], outputs, domain=DOMAIN, **attributes)
    info = functools.partial(onnx.helper.make_tensor_value_info, shape=None)
    graph = onnx.helper.make_graph(
        [node],
        "step",
        [info("R", element), info("T", onnx.TensorProto.INT64), *(info(name, element) for name in inputs)],
        [info(name, element) for name in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def given(
    operator: str, count: int, dtype: type, rate: float, steps: int, seed: int
) -> dict[str, np.ndarray]:
    """Random tensors of different shapes and states, these not negative."""
    generator = np.random.default_rng(seed)
    shapes = [(2, 3), (), (4,)][:count]
    tensors = {
        f"{kind}{index}": np.asarray(generator.normal(size=shape), dtype)
        for kind in KINDS[operator]
        for index, shape in enumerate(shapes)
    }
    tensors |= {name: np.asarray(np.abs(array)) for name, array in tensors.items() if name[0] == "h"}
    return {"R": np.array(rate, dtype), "T": np.array(steps, np.int64), **tensors}


@pytest.mark.parametrize("operator", KINDS)
@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(data=st.data())
def test_against_the_reference_evaluator(operator: str, data: st.DataObject) -> None:
    count, steps = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([0, 1, 2, 1000]))
    attributes = {name: data.draw(values, name) for name, values in ATTRIBUTES[operator].items()}
    attributes["norm_coefficient"] = data.draw(st.sampled_from([0.0, 0.01]))
    if operator != "Momentum" and data.draw(st.booleans()):
        attributes["epsilon"] = 1e-3
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    model = step(operator, count, dtype, **attributes)
    arrays = given(operator, count, dtype, 0.1, steps, seed=steps)
    expected = ReferenceEvaluator(model).run(None, arrays)
    values = run(onnx_grad.lower(model), arrays)
    # The evaluator takes attributes, and differences from them, in single precision.
    rtol = 1e-5 if dtype is np.float32 else 1e-6
    for (name, value), reference in zip(values.items(), expected, strict=True):
        assert value.dtype == dtype
        assert value.shape == arrays[name.removesuffix("_new")].shape
        np.testing.assert_allclose(value, reference, rtol=rtol, atol=rtol / 10, err_msg=name)


def sgd(tensors: Any, torch: Any) -> Any:
    return torch.optim.SGD(tensors, lr=0.1, momentum=0.9, weight_decay=0.01)


def nesterov(tensors: Any, torch: Any) -> Any:
    return torch.optim.SGD(tensors, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)


def dampened(tensors: Any, torch: Any) -> Any:
    return torch.optim.SGD(tensors, lr=0.1, momentum=0.9, dampening=0.25)


def adagrad(tensors: Any, torch: Any) -> Any:
    return torch.optim.Adagrad(tensors, lr=0.1, lr_decay=0.5, eps=1e-6, weight_decay=0.01)


def adam(tensors: Any, torch: Any) -> Any:
    """Its ε is added to what the correction has divided, so only without one are both the same."""
    return torch.optim.Adam(tensors, lr=0.1, betas=(0.875, 0.5), eps=0.0, weight_decay=0.01)


@pytest.mark.parametrize(
    ("optimizer", "operator", "first_step", "attributes"),
    [
        (sgd, "Momentum", 0, {"alpha": 0.9, "beta": 1.0, "mode": "standard", "norm_coefficient": 0.01}),
        (nesterov, "Momentum", 0, {"alpha": 0.9, "beta": 1.0, "mode": "nesterov", "norm_coefficient": 0.01}),
        (dampened, "Momentum", 0, {"alpha": 0.9, "beta": 0.75, "mode": "standard", "norm_coefficient": 0.0}),
        (adagrad, "Adagrad", 0, {"decay_factor": 0.5, "norm_coefficient": 0.01}),
        (adam, "Adam", 1, {"alpha": 0.875, "beta": 0.5, "epsilon": 0.0, "norm_coefficient": 0.01}),
    ],
)
def test_five_steps_against_pytorch(
    optimizer: Callable[..., Any], operator: str, first_step: int, attributes: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    model = onnx_grad.lower(step(operator, 2, np.float64, **attributes))
    arrays = given(operator, 2, np.float64, 0.1, first_step, seed=0)
    arrays |= {name: np.zeros_like(array) for name, array in arrays.items() if name[0] in "vh"}
    tensors = [torch.tensor(arrays[f"x{index}"], requires_grad=True) for index in range(2)]
    peer = optimizer(tensors, torch)
    generator = np.random.default_rng(1)
    for _ in range(5):
        for index, tensor in enumerate(tensors):
            arrays[f"g{index}"] = np.asarray(generator.normal(size=tensor.shape))
            tensor.grad = torch.tensor(arrays[f"g{index}"])
        peer.step()
        values = run(model, arrays)
        arrays |= {name.removesuffix("_new"): value for name, value in values.items()}
        arrays["T"] = np.asarray(arrays["T"] + 1)
        for index, tensor in enumerate(tensors):
            # Attributes are single precision.
            np.testing.assert_allclose(arrays[f"x{index}"], tensor.detach(), rtol=1e-5, atol=1e-7)


def test_the_first_steps_are_precise_in_single_precision() -> None:
    """In float32, 1 - 0.999 has an error of 5e-5."""
    attributes = {"alpha": 0.9, "beta": 0.999, "norm_coefficient": 0.0, "epsilon": 0.0}
    narrow, wide = (
        run(onnx_grad.lower(step("Adam", 1, dtype, **attributes)), given("Adam", 1, dtype, 0.1, 1, seed=0))
        for dtype in (np.float32, np.float64)
    )
    np.testing.assert_allclose(narrow["x0_new"], wide["x0_new"], rtol=1e-6)


def test_a_rate_of_another_type_and_with_an_axis() -> None:
    model = program(
        "g (double[1] r, int64[1] t, float x, float g, double[2] y, double[2] h, float a, double[2] b)"
        "=> (float x1, double[2] y1, float a1, double[2] b1)"
        "{ x1, y1, a1, b1 = Adagrad<decay_factor = 0.5>(r, t, x, y, g, h, a, b) }"
    )
    zero, one = np.zeros(2), np.ones(2)
    inputs = {
        "r": np.array([0.5]),
        "t": np.array([2]),
        "x": 3.0,
        "g": 2.0,
        "a": 0.0,
        "y": zero,
        "h": one,
        "b": zero,
    }
    values = run(onnx_grad.lower(model), inputs)
    np.testing.assert_allclose(values["x1"], 3 - 0.25, rtol=1e-6)
    np.testing.assert_allclose(values["y1"], [-0.25, -0.25], rtol=1e-5)
    assert values["x1"].shape == ()
    assert values["y1"].dtype == np.float64


def test_derivatives_at_the_first_step_of_adam_are_finite() -> None:
    """At T = 0 the correction of the rate is 0 / 0, and not used."""
    model = onnx_grad.vjp(step("Adam", 1, np.float64, beta=0.5), wrt=["R", "g0"], of="x0_new")
    arrays = given("Adam", 1, np.float64, 0.1, 0, seed=0)
    values = run(model, {**arrays, "x0_new_grad": np.ones((2, 3))})
    direction = (0.9 * arrays["v0"] + 0.1 * arrays["g0"]) / (
        np.sqrt(0.5 * arrays["h0"] + 0.5 * arrays["g0"] ** 2) + 1e-6
    )
    np.testing.assert_allclose(values["R_grad"], -direction.sum(), rtol=1e-6)
    assert np.isfinite(values["g0_grad"]).all()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            "g (float r, int64 t, float x, float g) => (float y, float h)"
            "{ y, h = Adagrad<epsilon = 0.5>(r, t, x, g) }",
            "'y' has 4 inputs.*tensor, gradient, sum of its square",
        ),
        (
            "g (float r, int64 t, float x, float g, float v) => (float y, float u) { y, u = "
            'Momentum<alpha = 0.9, beta = 1.0, norm_coefficient = 0.0, mode = "heavy">(r, t, x, g, v) }',
            "'y' has mode 'heavy'.*'standard' or 'nesterov'",
        ),
        (
            "g (float r, int64 t, float x, float g, float h) => (float a)"
            "{ a, b, c = Adagrad<epsilon = 0.5>(r, t, x, g, h) }",
            "'a' has 3 outputs for 2 results",
        ),
    ],
)
def test_what_is_wrong_is_said(graph: str, message: str) -> None:
    with pytest.raises(onnx_grad.ModelError, match=message):
        onnx_grad.lower(program(graph))
