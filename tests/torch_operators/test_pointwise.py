"""Activations and elementwise arithmetic, at kinks and with every way to broadcast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import normal, positive, tied

F = torch.nn.functional

# Kinks of the activations, and where exponentials overflow or vanish.
KINKS = np.array([-800.0, -30.0, -3.0, -1.0, -0.5, -1e-9, 0.0, 1e-9, 0.5, 1.0, 3.0, 30.0, 800.0])
SINGLE = 2e-6  # the reference evaluator computes these in float32 inside


@rows(
    Row("Relu", {"x": KINKS}, torch.relu),
    Row("LeakyRelu", {"x": KINKS}, lambda x: F.leaky_relu(x, 0.25), {"alpha": 0.25}),
    Row("LeakyRelu", {"x": KINKS}, lambda x: F.leaky_relu(x, -0.5), {"alpha": -0.5}),
    Row("ThresholdedRelu", {"x": KINKS}, lambda x: F.threshold(x, 0.5, 0.0), {"alpha": 0.5}),
    Row("Elu", {"x": KINKS}, lambda x: F.elu(x, 0.75), {"alpha": 0.75}),
    Row("Selu", {"x": KINKS}, F.selu, rtol=SINGLE),
    Row("HardSigmoid", {"x": KINKS}, F.hardsigmoid, {"alpha": 1 / 6}, rtol=SINGLE),
    Row("HardSwish", {"x": KINKS}, F.hardswish, rtol=SINGLE),
    Row("Shrink", {"x": KINKS}, lambda x: F.hardshrink(x, 0.5), {"lambd": 0.5}),
    Row("Shrink", {"x": KINKS}, lambda x: F.softshrink(x, 0.5), {"lambd": 0.5, "bias": 0.5}),
    Row("Sigmoid", {"x": KINKS}, torch.sigmoid),
    Row("Tanh", {"x": KINKS}, torch.tanh),
    Row("Softplus", {"x": KINKS}, lambda x: F.softplus(x, threshold=100), single=True),
    Row("Softsign", {"x": KINKS}, F.softsign),
    Row("Mish", {"x": KINKS}, F.mish),
    Row("Swish", {"x": KINKS}, F.silu, opset=24),
    Row("Gelu", {"x": KINKS}, F.gelu, opset=20, rtol=SINGLE),
    Row(
        "Gelu",
        {"x": KINKS},
        lambda x: F.gelu(x, approximate="tanh"),
        {"approximate": "tanh"},
        opset=20,
        rtol=SINGLE,
    ),
    Row("PRelu", {"x": tied(2, 3, 4), "slope": normal(3, 1)}, lambda x, s: torch.where(x > 0, x, s * x)),
    Row("PRelu", {"x": tied(2, 3), "slope": normal(1)}, F.prelu),
)
def test_activations(row: Row) -> None:
    agree(row)


@rows(
    Row("Celu", {"x": KINKS}, lambda x: F.celu(x, 0.75), {"alpha": 0.75}, opset=28),
)
def test_celu(row: Row) -> None:
    agree(row)


INSIDE = np.array([-0.9, -0.3, 0.0, 0.4, 0.95])


@rows(
    *(
        Row(op_type, {"x": KINKS}, function)
        for op_type, function in [
            ("Abs", torch.abs),
            ("Neg", torch.neg),
            ("Sign", torch.sign),
            ("Floor", torch.floor),
            ("Ceil", torch.ceil),
            ("Round", torch.round),
            ("Sin", torch.sin),
            ("Cos", torch.cos),
            ("Tan", torch.tan),
            ("Atan", torch.atan),
            ("Asinh", torch.asinh),
            ("Identity", torch.clone),
        ]
    ),
    *(
        Row(name, {"x": INSIDE}, getattr(torch, name.lower()))
        for name in ("Asin", "Acos", "Atanh", "Sinh", "Cosh")
    ),
    Row("Acosh", {"x": positive(5) + 1}, torch.acosh),
    Row("Exp", {"x": KINKS[:-1]}, torch.exp),
    Row("Log", {"x": positive(3, 2)}, torch.log),
    Row("Sqrt", {"x": positive(3, 2)}, torch.sqrt),
    Row("Reciprocal", {"x": normal(3, 2)}, torch.reciprocal),
    Row("Erf", {"x": KINKS}, torch.erf, rtol=SINGLE),
)
def test_functions_of_one_tensor(row: Row) -> None:
    agree(row)


# Both ways, size one against more, size zero, and different ranks.
BROADCASTS = [
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 1, 4), (3, 1)),
    ((1, 1), (2, 3)),
    ((), (2, 3)),
    ((2, 3), ()),
    ((2, 0), (1, 1)),
    ((1,), (0,)),
    ((2, 3), (2, 3)),
]


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@rows(
    Row("Add", {}, torch.add),
    Row("Sub", {}, torch.sub),
    Row("Mul", {}, torch.mul),
    Row("Div", {}, torch.div),
    Row("Pow", {}, torch.pow),
    Row("Max", {}, torch.maximum),
    Row("Min", {}, torch.minimum),
    Row("Mean", {}, lambda a, b: (a + b) / 2, single=True),
    Row("Sum", {}, torch.add),
)
def test_broadcasting(row: Row, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    first, second = shapes
    agree(replace(row, inputs={"a": positive(*first), "b": positive(*second, seed=1)}))


THREE = {"a": normal(2, 1, 4), "b": normal(3, 1, seed=1), "c": normal(4, seed=2)}
BOUNDS = {"x": tied(3, 4), "low": np.array(-1.0), "high": np.array(1.0)}
REMAINDERS = {"a": normal(2, 3) * 5, "b": np.array([-1.3, 2.0, 0.7])}


@rows(
    Row("Max", {"a": tied(3, 4), "b": tied(3, 4, seed=1)}, torch.maximum),
    Row("Min", {"a": tied(3, 4), "b": tied(4, seed=1)}, torch.minimum),
    Row("Max", THREE, lambda a, b, c: torch.maximum(torch.maximum(a, b), c)),
    Row("Min", THREE, lambda a, b, c: torch.minimum(torch.minimum(a, b), c)),
    Row("Sum", THREE, lambda a, b, c: a + b + c),
    Row("Mean", THREE, lambda a, b, c: (a + b + c) / 3, single=True),
    Row("Max", {"a": tied(3, 2)}, torch.clone),
    Row("Clip", BOUNDS, torch.clamp),
    Row("Clip", {**BOUNDS, "low": np.array(1.0), "high": np.array(-1.0)}, torch.clamp),
    Row("Clip", {**BOUNDS, "low": None}, lambda x, high: torch.clamp(x, max=high)),
    Row("Clip", {**BOUNDS, "high": None}, lambda x, low: torch.clamp(x, min=low)),
    Row("Mod", REMAINDERS, torch.fmod, {"fmod": 1}),
    Row("Mod", {"a": normal(2, 1), "b": positive(1, 3)}, torch.fmod, {"fmod": 1}),
    Row(
        "Pow",
        {"a": np.array([0.0, 0.0, 0.0, -2.0, 2.0]), "b": np.array([0.0, 1.0, 2.0, 3.0, -1.5])},
        torch.pow,
    ),
    Row("Pow", {"a": np.array([0.0, -1.5, 2.0]), "b": np.array([2, 3, 0])}, torch.pow),
    Row("Where", {"c": np.array([[True], [False]]), "a": normal(3), "b": normal(2, 1)}, torch.where),
    Row("Where", {"c": np.array(True), "a": normal(2, 1), "b": normal(1, 3)}, torch.where),
    Row("Where", {"c": np.zeros((2, 0), bool), "a": normal(1), "b": normal(2, 1)}, torch.where),
)
def test_ties_bounds_and_masks(row: Row) -> None:
    agree(row)
