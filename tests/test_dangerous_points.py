"""Gradients where functions are not smooth, not defined, infinite or empty: expected numbers, and PyTorch's.

Branches that are not taken are in `tests.test_masking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import parse
from tests.operator_forms import Form, integers, normal, operator_forms
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, single_node, with_shapes

pytestmark = pytest.mark.filterwarnings(
    "ignore:divide by zero", "ignore:invalid value", "ignore:overflow", "ignore:Mean of empty"
)

INF, NAN = np.inf, np.nan
ZEROS = np.array([-0.0, 0.0])
AXIS = integers(1)


@dataclass(frozen=True)
class At:
    """A node at dangerous points.

    Attributes:
        operator: Its type.
        inputs: Its inputs; those in float64 are differentiated.
        expected: The gradient of each of these, for a cotangent of ones.
        torch: The name of PyTorch's function of the same inputs, or a function of `torch` and the inputs;
            `None` where PyTorch has none, or chooses otherwise.
        opset: Of the model.
        attributes: Of the node.
    """

    operator: str
    inputs: list[Any]
    expected: list[Any]
    torch: str | Callable[..., Any] | None = None
    opset: int = 18
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def point(self) -> dict[str, np.ndarray]:
        return {f"x{i}": np.asarray(a) for i, a in enumerate(self.inputs)}


def _unary(
    operator: str, x: Any, expected: Any, torch: str | Callable[..., Any] | None, opset: int = 18
) -> At:
    return At(operator, [np.array(x, dtype=float)], [expected], torch, opset)


def _functional(name: str, *arguments: Any) -> Callable[..., Any]:
    return lambda torch, *xs: getattr(torch.nn.functional, name)(*xs, *arguments)


POINTS = [
    # At zero, and at infinity where the function has a limit there.
    _unary("Abs", [-0.0, 0.0, INF, -INF], [0, 0, 1, -1], "abs"),
    _unary("Relu", [-0.0, 0.0, INF, -INF, NAN], [0, 0, 1, 0, 1], "relu"),
    _unary("LeakyRelu", [0.0, INF, -INF], [0.009999999776482582, 1, 0.009999999776482582], None),
    _unary("Elu", [0.0, INF, -INF], [1, 1, 0], _functional("elu")),
    _unary("Selu", [INF, -INF], [1.0507010221481323, 0], None),
    _unary("HardSigmoid", [-2.5, 2.5, INF, -INF], [0, 0, 0, 0], None),
    _unary("HardSwish", [-3.0, 3.0, INF, -INF], [0, 1, 1, 0], None),
    _unary("ThresholdedRelu", [1.0, 0.0, INF], [0, 0, 1], _functional("threshold", 1.0, 0.0)),
    _unary("Shrink", [0.5, -0.5, 0.0, INF], [0, 0, 0, 1], _functional("hardshrink", 0.5)),
    _unary("Softsign", [0.0, INF, -INF], [1, 0, 0], None),
    _unary("Sigmoid", [INF, -INF, 800.0, -800.0], [0, 0, 0, 0], "sigmoid"),
    _unary("Tanh", [INF, -INF], [0, 0], "tanh"),
    _unary("Softplus", [INF, -INF, 800.0], [1, 0, 1], _functional("softplus")),
    _unary("Mish", [800.0, -800.0], [1, 0], _functional("mish")),
    _unary("Swish", [800.0, -800.0], [1, 0], _functional("silu"), 24),
    _unary("Gelu", [800.0, -800.0], [1, 0], _functional("gelu"), 20),
    _unary("Erf", [INF, -INF, 1e200], [0, 0, 0], "erf"),
    _unary("Sqrt", [0.0, INF, -1.0], [INF, 0, NAN], "sqrt"),
    _unary("Log", [0.0, INF], [INF, 0], "log"),
    _unary("Reciprocal", [-0.0, 0.0, INF, -INF], [-INF, -INF, 0, 0], "reciprocal"),
    _unary("Exp", [-INF, -800.0, 800.0], [0, 0, INF], "exp"),
    _unary("Asin", [1.0, -1.0], [INF, INF], "asin"),
    _unary("Acos", [1.0, -1.0], [-INF, -INF], "acos"),
    _unary("Acosh", [1.0, INF], [INF, 0], "acosh"),
    _unary("Atanh", [1.0, -1.0], [INF, INF], "atanh"),
    _unary("Asinh", [0.0, INF, -INF], [1, 0, 0], "asinh"),
    _unary("Atan", [0.0, INF, -INF], [1, 0, 0], "atan"),
    _unary("Sinh", [0.0, 800.0, INF, -INF], [1, INF, INF, INF], "sinh"),
    _unary("Cosh", [0.0, INF, -INF], [0, INF, -INF], "cosh"),
    _unary("Sign", [-1.0, 0.0, 1.0], [0, 0, 0], "sign"),
    _unary("Floor", [-1.0, 0.0, 0.5], [0, 0, 0], "floor"),
    _unary("Round", [-0.5, 0.0, 0.5], [0, 0, 0], "round"),
    # Two operands.
    At(
        "Pow",
        [np.array([0.0, 0, 0, 0, 0, -2, -2]), np.array([0.0, 1, 2, 0.5, -1, 3, 0.5])],
        [[0, 1, 0, INF, -INF, 12, NAN], [0, 0, 0, 0, -INF, NAN, NAN]],
        "pow",
    ),
    At("Div", [np.array([1.0, 0, 0]), np.array([0.0, 0, 2])], [[INF, INF, 0.5], [-INF, NAN, 0]], "div"),
    At("Mod", [np.array([5.0, 4, -4]), np.array([2.0, 2, 2])], [[1, 1, 1], [-2, -2, 2]], "fmod",
       attributes={"fmod": 1}),
    At("Max", [np.array([1.0, 2, INF]), np.array([1.0, 1, INF])], [[0.5, 1, 0.5], [0.5, 0, 0.5]], "maximum"),
    At("Min", [np.array([1.0, 2, INF]), np.array([1.0, 1, INF])], [[0.5, 0, 0.5], [0.5, 1, 0.5]], "minimum"),
    At("Max", [np.array([1.0, 3]), np.array([1.0, 3]), np.array([1.0, 2])],
       [[1 / 3, 0.5], [1 / 3, 0.5], [1 / 3, 0]]),
    At("PRelu", [np.array([0.0, INF, -INF]), np.array([0.25, 0.5, 0.5])], [[0.25, 1, 0.5], [0, 0, -INF]]),
    At("Where", [np.array([True, False]), np.array([1, NAN]), np.array([NAN, 2])], [[1, 0], [0, 1]],
       lambda torch, a, b: torch.where(torch.tensor([True, False]), a, b)),
    At("Clip", [np.array([-1.0, 0, 0.5, 1, 2, INF, NAN]), np.array(0.0), np.array(1.0)],
       [[0, 1, 1, 1, 0, 0, 0], 1, 2], "clamp"),
    At("Clip", [np.array([-1.0, 0, 0.5, 2]), np.array(1.0), np.array(0.0)], [[0, 0, 0, 0], 0, 4], "clamp"),
    At("Clip", [np.array([-1.0, 0.5, 2]), np.array(0.5), np.array(0.5)], [[0, 1, 0], 0, 1], "clamp"),
]  # fmt: skip


def _reduced(
    operator: str, x: Any, expected: Any, torch: str | Callable[..., Any] | None = None, **attributes: Any
) -> At:
    return At(operator, [np.array(x, dtype=float), AXIS], [expected], torch, 18, attributes)


_THIRDS = [1 / 3, 1 / 3, 1 / 3]
POINTS += [
    # Ties, zeros and infinities in a group; PyTorch's logsumexp gives NaN where all are −∞.
    _reduced("ReduceMax", [[1, 1, 0], [2, 2, 2], [-INF] * 3], [[0.5, 0.5, 0], _THIRDS, _THIRDS],
             lambda torch, x: x.amax(1, keepdim=True)),
    _reduced("ReduceMin", [[1, 0, 0], [INF] * 3], [[0, 0.5, 0.5], _THIRDS],
             lambda torch, x: x.amin(1, keepdim=True)),
    _reduced("ReduceL1", [[0, -2, 3], [INF, 0, -INF]], [[0, -1, 1], [1, 0, -1]],
             lambda torch, x: x.abs().sum(1, keepdim=True)),
    _reduced("ReduceL2", [[0, 0], [3, 4], [0, -2]], [[0, 0], [0.6, 0.8], [0, -1]],
             lambda torch, x: torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    _reduced("ReduceLogSum", [[0, 0], [1, -1], [1, 3]], [[INF, INF], [INF, INF], [0.25, 0.25]],
             lambda torch, x: x.sum(1, keepdim=True).log()),
    _reduced("ReduceLogSumExp", [[1e4, 1e4], [-1e4, -1e4], [-INF, 1]], [[0.5, 0.5], [0.5, 0.5], [0, 1]],
             lambda torch, x: x.logsumexp(1, keepdim=True)),
    _reduced("ReduceLogSumExp", [[-INF, -INF]], [[0, 0]]),
    _reduced("ReduceProd", [[2, 3, 4], [0, 3, 4], [0, 3, 0], [0, 0, 0], [1e200, 1e200, 0]],
             [[12, 8, 6], [12, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, INF]],
             lambda torch, x: x.prod(1, keepdim=True)),
    At("CumProd", [np.array([[2.0, 3, 4], [0, 3, 4], [2, 0, 4], [0, 0, 4], [0, 0, 0]]), np.array(1)],
       [[[16, 10, 6], [16, 0, 0], [1, 10, 0], [1, 0, 0], [1, 0, 0]]],
       lambda torch, x: x.cumprod(1), 26),
    At("LpNormalization", [np.array([[0.0, 0], [3, 4]])], [[[0, 0], [0.032, -0.024]]]),
    At("LpNormalization", [np.array([[0.0, 0], [3, -1]])], [[[0, 0], [0.125, 0.375]]],
       attributes={"p": 1}),
    # Windows.
    At("MaxPool", [np.array([[[1.0, 1, 2, 2, -INF, -INF]]])], [[[[1, 0, 1, 0, 1, 0]]]],
       _functional("max_pool1d", 2, 2), attributes={"kernel_shape": [2], "strides": [2]}),
    At("GlobalMaxPool", [np.array([[[1.0, 2, 2]]])], [[[[0, 1, 0]]]], _functional("adaptive_max_pool1d", 1)),
    At("LpPool", [np.array([[[0.0, 0, 3, 4]]])], [[[[0, 0, 0.6, 0.8]]]],
       attributes={"kernel_shape": [2], "strides": [2], "p": 2}),
    At("LpPool", [np.array([[[0.0, 0, 3, -4]]])], [[[[0, 0, 1, -1]]]],
       attributes={"kernel_shape": [2], "strides": [2], "p": 1}),
    At("TopK", [np.array([1.0, 3, 3, 3, 2]), integers(2)], [[0, 1, 1, 0, 0]]),
    At("Unique", [np.array([1.0, 3, 3, 2])], [[1, 0.5, 0.5, 1]]),
]  # fmt: skip


def _case(at: At) -> Any:
    return pytest.param(at, id=f"{at.operator}-{np.asarray(at.inputs[0]).ravel()[:3].tolist()}")


def _model(at: At) -> onnx.ModelProto:
    outputs = {"TopK": 2, "Unique": 4}.get(at.operator, 1)
    return single_node(at.operator, at.point(), outputs=outputs, opset=at.opset, **at.attributes)


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
@pytest.mark.parametrize("at", [_case(at) for at in POINTS])
def test_value_at_dangerous_points(at: At, knowledge: str) -> None:
    point = at.point()
    ones = np.ones_like(evaluator(_model(at))(point)["y0"])
    differentiated = [name for name, a in point.items() if a.dtype == np.float64]
    actual = gradients(with_shapes(_model(at), knowledge), point, {"y0": ones}, differentiated)
    for name, expected in zip(differentiated, at.expected, strict=True):
        np.testing.assert_allclose(actual[name], expected, rtol=1e-7, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("at", [_case(at) for at in POINTS if at.torch is not None])
def test_value_at_dangerous_points_is_that_of_pytorch(at: At) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    tensors = [torch.tensor(a, requires_grad=True) for a in at.point().values() if a.dtype == np.float64]
    function = at.torch if callable(at.torch) else lambda torch, *xs: getattr(torch, at.torch)(*xs)
    function(torch, *tensors).sum().backward()
    for tensor, expected in zip(tensors, at.expected, strict=True):
        np.testing.assert_allclose(tensor.grad, expected, rtol=1e-7, atol=1e-12)


# f(x) = r(s(x)) with r' infinite at 0, where s selects: what is not selected keeps a zero gradient.
SELECTIONS = {
    "rectifier": ("s = Relu(x)", [-1.0, 0.0], [0.0, 0.0]),
    "bound": ("s = Clip(x, zero)", [-1.0, 0.0], [0.0, INF]),
    "maximum": ("s = Max(x, zero)", [-1.0, 0.0], [0.0, INF]),
    "maximum of a group": ("s = ReduceMax(x, axes)", [-1.0, 0.0], [0.0, INF]),
    "minimum of a group": ("s = ReduceMin(x, axes)", [1.0, 0.0], [0.0, INF]),
    "largest": ("s, i = TopK(x, k)", [-1.0, 0.0], [0.0, INF]),
    "picked": ("s = Gather(x, k)", [-1.0, 0.0], [0.0, INF]),
    "condition": ("c = Less(x, zero) s = Where(c, one, x)", [-1.0, 0.0], [0.0, INF]),
    "scattered": ("s = ScatterElements(x, origin, x1)", [-1.0, 0.0], [0.0, INF]),
    "largest scattered": (
        'x2 = Identity(x) s = ScatterElements<reduction = "max">(x2, origin, x1)',
        [-1.0, 0.0],
        [0.0, INF],
    ),
    "threshold": ("s = ThresholdedRelu(x)", [-1.0, 0.0], [0.0, 0.0]),
    "shrunk": ("s = Shrink(x)", [-0.25, 0.25], [0.0, 0.0]),
    "ramp": ("s = HardSigmoid(x)", [-9.0, -3.0], [0.0, 0.0]),
}


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
@pytest.mark.parametrize(("body", "x", "expected"), SELECTIONS.values(), ids=list(SELECTIONS))
def test_infinite_cotangents_through_selections(
    body: str, x: list[float], expected: list[float], knowledge: str
) -> None:
    model = with_shapes(
        parse(
            f"""
            g (double[2] x) => (double[M] y) <double zero = {{0}}, double one = {{1}}, double[1] x1 = {{1}},
                int64[1] axes = {{0}}, int64[1] k = {{1}}, int64[1] origin = {{0}}> {{ {body} y = Sqrt(s) }}
            """
        ),
        knowledge,
    )
    values = evaluator(model)({"x": np.array(x)})["y"]
    actual = gradients(model, {"x": np.array(x)}, {"y": np.ones_like(values)}, ["x"])["x"]
    np.testing.assert_array_equal(actual, expected)


PRODUCTS = {"none": [2.0, 3, 4, 5], "one": [0.0, 3, 4, 5], "two": [0.0, 3, 0, 5], "three": [0.0, 3, 0, 0]}


@pytest.mark.parametrize("operator", ["ReduceProd", "CumProd"])
@pytest.mark.parametrize("x", PRODUCTS.values(), ids=list(PRODUCTS))
def test_second_derivatives_of_products_with_zeros(x: list[float], operator: str) -> None:
    """∂²Πx/∂xᵢ∂xⱼ is the product of all others; the last element of a running product is Πx too."""
    inputs = {"x": np.array(x), **({"axis": np.array(0)} if operator == "CumProd" else {})}
    model = single_node(operator, inputs, opset=26)
    gradient = onnx_grad.vjp(model, "x")
    (y,) = evaluator(model)(inputs).values()
    seed = np.zeros_like(y)
    seed[-1] = 1
    for i in range(4):
        direction = np.eye(4)[i]
        given = {**inputs, "y0_grad": seed}
        row = gradients(gradient, given, {"x_grad": direction}, ["x"])["x"]
        expected = [0.0 if j == i else np.prod([x[k] for k in range(4) if k not in (i, j)]) for j in range(4)]
        np.testing.assert_allclose(row, expected, atol=1e-12)


REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare".split()
)
# Each element of the result depends on several rows, or there is only one.
MIXING = frozenset(
    "Attention BatchNormalization DequantizeLinear LinearAttention MaxRoiPool MaxUnpool "
    "MeanVarianceNormalization OneHot Range RoiAlign RotaryEmbedding Unique Where".split()
)
BY_ROW = [
    *(form for form in operator_forms() if form.operator not in {*MIXING, *REDUCTIONS, "Cast", "CastLike"}),
    *(Form(name, {"a": 1 + normal(3, 4) ** 2, "axes": AXIS}) for name in REDUCTIONS),
]


@pytest.mark.parametrize("form", [pytest.param(form, id=form.operator) for form in BY_ROW])
def test_nan_stays_in_its_row(form: Form) -> None:
    poisoned = form.inputs["a"].copy()
    poisoned.reshape(len(poisoned), -1)[0, 0] = NAN
    clean = _first_gradient(form)[1:]
    beside = _first_gradient(replace(form, inputs={**form.inputs, "a": poisoned}))[1:]
    np.testing.assert_allclose(beside, clean, rtol=1e-5, atol=1e-6)
    assert clean.any()


def _first_gradient(form: Form) -> np.ndarray:
    """In float32, which ONNX Runtime has more kernels for."""
    model, point = form.model(np.float32), form.point(np.float32)
    return gradients(model, point, _cotangents(model, point), ["a"])["a"]


def _cotangents(model: onnx.ModelProto, point: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A cotangent for each float32 output."""
    values = evaluator(model)(point)
    return {y: normal(*v.shape).astype(v.dtype) for y, v in values.items() if v.dtype == np.float32}


# Inputs whose first axis counts the batch, besides the first input: names of the form's inputs.
BATCHED = {
    "CausalConvWithState": "ad",
    "Compress": "ab",
    "Concat": "ab",
    "DeformConv": "ac",
    "Expand": "",
    "Gather": "b",
    "GatherElements": "b",
    "GatherND": "b",
    "GridSample": "ab",
    "MaxRoiPool": "b",
    "MaxUnpool": "ab",
    "NegativeLogLikelihoodLoss": "ab",
    "OneHot": "a",
    "RoiAlign": "bc",
    "RotaryEmbedding": "abc",
    "ScatterElements": "bc",
    "ScatterND": "bc",
    "SwiGLU": "ab",
    "TensorScatter": "abc",
    "Where": "ab",
}
# What says how large the result is, for no rows.
SIZES = {
    "AffineGrid": integers(0, 3, 4, 5),
    "CenterCropPad": integers(0, 3),
    "Expand": integers(3, 0),
    "Reshape": integers(0, 7),
}
# Forms whose first axis cannot be empty: ONNX Runtime refuses the forward model.
NEVER_EMPTY = frozenset(
    "Attention DequantizeLinear GroupNormalization LinearAttention Range ReverseSequence "
    "SoftmaxCrossEntropyLoss".split()
)


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, id=form.operator)
        for form in operator_forms()
        if form.operator not in NEVER_EMPTY and form.attributes.get("mode") != "reflect"
    ],
)
def test_empty_batch(form: Form, knowledge: str) -> None:
    """Gradients have the shapes of the inputs; those of inputs that are not empty are finite."""
    cut = {name: a[:0] for name, a in form.inputs.items() if name in BATCHED.get(form.operator, "a")}
    if form.operator in SIZES:
        cut["b"] = SIZES[form.operator]
    empty = replace(form, inputs={**form.inputs, **cut})
    model, point = empty.model(np.float32), empty.point(np.float32)
    cotangents = _cotangents(model, point)
    differentiated = [name for name, a in form.inputs.items() if a is not None and a.dtype == np.float64]
    actual = gradients(with_shapes(model, knowledge), point, cotangents, differentiated)
    for name, gradient in actual.items():
        assert gradient.shape == point[name].shape
        assert np.isfinite(gradient).all()
