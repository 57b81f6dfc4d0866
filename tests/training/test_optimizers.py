"""Optimizers: a hundred steps follow PyTorch's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnx_grad import InputError, UnknownNameError
from onnx_grad.training import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Optimizer,
    OptimizerNotes,
    ParameterGroup,
    RMSprop,
)
from onnx_grad.training.in_place import overwritable
from onnx_grad.training.optimizer_graph import optimizer_graph

SHAPES = {"weight": (5, 7), "bias": (3,)}
RATE = 0.01
STEPS = 100


def parameters() -> list[tuple[ir.Value, str]]:
    return [
        (ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT)), f"{name}_grad")
        for name, shape in SHAPES.items()
    ]


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([1, step])
    return {
        name: (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 2)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


class Loop:
    """Run, swap, repeat: what a loop in any language does with an optimizer model."""

    def __init__(self, optimizer: Any, **options: Any) -> None:
        model = optimizer_graph(parameters(), optimizer, **options)
        self.notes = OptimizerNotes.of(model)
        self.session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        self.state: dict[str, np.ndarray] = start()
        for name, number in self.notes.initial.items():
            self.state[name] = np.full(SHAPES[self.notes.slot_of[name]], number, np.float32)
        for parameter, name in self.notes.averages.items():
            self.state[name] = self.state[parameter]
        self.state[self.notes.step] = np.asarray(0)

    def step(self, number: int, **more: float) -> None:
        feeds = {self.notes.gradients[name]: g for name, g in gradients(number).items()}
        scalars = {name: np.asarray(value, np.float32) for name, value in more.items()}
        rate = {self.notes.learning_rate: np.asarray(RATE, np.float32)}
        names = [output.name for output in self.session.get_outputs()]
        results = self.session.run(names, {**self.state, **feeds, **rate, **scalars})
        updated = dict(zip(names, results, strict=True))
        pairs = {**self.notes.parameters, **self.notes.slots, self.notes.step: self.notes.step_updated}
        self.state = {name: updated[output] for name, output in pairs.items()}


def follow(loop: Loop, make: Callable[[list[Any]], Any], prepare: Callable[[list[Any]], None]) -> None:
    torch = pytest.importorskip("torch", reason="the steps are compared with PyTorch's")
    oracle = {name: torch.tensor(value, requires_grad=True) for name, value in start().items()}
    optimizer = make(list(oracle.values()))
    for number in range(STEPS):
        for name, gradient in gradients(number).items():
            oracle[name].grad = torch.tensor(gradient)
        prepare(list(oracle.values()))
        optimizer.step()
        loop.step(number, **more_inputs(loop, number))
    for name, tensor in oracle.items():
        # Relative to the size of the parameters: single ones may be near zero.
        expected = tensor.detach().numpy()
        difference = np.abs(loop.state[name] - expected) / np.maximum(np.abs(expected), 0.1)
        assert difference.max() < 1e-5


def more_inputs(loop: Loop, number: int) -> Mapping[str, float]:
    if loop.notes.gradient_norm is None:
        return {}
    squares = sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients(number).values())
    return {loop.notes.gradient_norm: float(np.sqrt(squares))}


CASES: list[tuple[Optimizer, str, dict[str, Any]]] = [
    (SGD(), "SGD", {}),
    (
        SGD(momentum=0.9, dampening=0.1, weight_decay=0.1),
        "SGD",
        {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    ),
    (SGD(momentum=0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
    (Adam(), "Adam", {}),
    (
        Adam((0.8, 0.95), 1e-6, weight_decay=0.1),
        "Adam",
        {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    (AdamW(), "AdamW", {}),
    (RMSprop(), "RMSprop", {}),
    (
        RMSprop(0.9, weight_decay=0.01, momentum=0.9, centered=True),
        "RMSprop",
        {"alpha": 0.9, "weight_decay": 0.01, "momentum": 0.9, "centered": True},
    ),
    (Adagrad(), "Adagrad", {}),
    (
        Adagrad(learning_rate_decay=0.1, weight_decay=0.1, initial_sum=0.5),
        "Adagrad",
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
]


@pytest.mark.parametrize(("optimizer", "name", "options"), CASES, ids=[repr(case[0]) for case in CASES])
def test_a_hundred_steps_are_those_of_pytorch(
    optimizer: Optimizer, name: str, options: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch", reason="the steps are compared with PyTorch's")
    kind = getattr(torch.optim, name)
    follow(Loop(optimizer), lambda values: kind(values, lr=RATE, **options), lambda _: None)


def test_lion_follows_its_definition() -> None:
    loop = Loop(Lion((0.9, 0.99), weight_decay=0.1))
    theta, momentum = start(), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number in range(STEPS):
        loop.step(number)
        for name, g in gradients(number).items():
            direction = np.sign(0.9 * momentum[name] + 0.1 * g)
            theta[name] = theta[name] * (1 - RATE * 0.1) - RATE * direction
            momentum[name] = 0.99 * momentum[name] + 0.01 * g
    for name, expected in theta.items():
        np.testing.assert_allclose(loop.state[name], expected, rtol=1e-5, atol=1e-6)


def test_clipping_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="the steps are compared with PyTorch's")

    def clip(values: list[Any]) -> None:
        torch.nn.utils.clip_grad_norm_(values, 2.0)

    follow(Loop(AdamW(), clip_norm=2.0), lambda values: torch.optim.AdamW(values, lr=RATE), clip)


def test_groups_have_their_own_options() -> None:
    torch = pytest.importorskip("torch", reason="the steps are compared with PyTorch's")
    group = ParameterGroup("b*", learning_rate_factor=0.1, options={"weight_decay": 0.0})

    def make(values: list[Any]) -> Any:
        weight, bias = values
        others = {"params": [bias], "lr": RATE * 0.1, "weight_decay": 0.0}
        return torch.optim.AdamW([{"params": [weight]}, others], lr=RATE, weight_decay=0.1)

    follow(Loop(AdamW(weight_decay=0.1), groups=[group]), make, lambda _: None)


def test_averages_follow_the_parameters() -> None:
    loop = Loop("sgd", average=0.9)
    average = start()
    for number in range(20):
        loop.step(number)
        average = {name: 0.9 * value + 0.1 * loop.state[name] for name, value in average.items()}
    for name, expected in average.items():
        np.testing.assert_allclose(loop.state[loop.notes.averages[name]], expected, rtol=1e-5, atol=1e-6)


def test_scaled_gradients() -> None:
    plain, scaled = Loop("sgd"), Loop("sgd", scaled=True)
    plain.step(0)
    scaled.step(0, gradient_scale=1.0)
    for name in SHAPES:
        np.testing.assert_array_equal(plain.state[name], scaled.state[name])


@pytest.mark.parametrize("optimizer", [case[0] for case in CASES] + [Lion(weight_decay=0.1)], ids=repr)
def test_every_update_can_be_made_in_place(optimizer: Optimizer) -> None:
    model = optimizer_graph(parameters(), optimizer, clip_norm=1.0, average=0.9, scaled=True)
    notes = OptimizerNotes.of(model)
    pairs = {**notes.parameters, **notes.slots}
    assert overwritable(model.graph, pairs) == set(pairs)


def test_bad_options_are_refused() -> None:
    for make in (
        lambda: SGD(nesterov=True),
        lambda: SGD(momentum=1.0),
        lambda: Adam(betas=(0.9, 1.0)),
        lambda: AdamW(eps=-1.0),
        lambda: Adam(betas=(0.9,)),  # type: ignore[arg-type]
        lambda: Adam(weight_decay="much"),  # type: ignore[arg-type]
        lambda: optimizer_graph(parameters(), 7),  # type: ignore[arg-type]
        lambda: optimizer_graph(parameters(), "sgd", clip_norm=0.0),
        lambda: optimizer_graph(parameters(), "sgd", average=1.0),
        lambda: optimizer_graph(parameters(), "sgd", groups=[ParameterGroup("*", options={"beta": 1})]),
    ):
        with pytest.raises(InputError):
            make()
    with pytest.raises(UnknownNameError, match="'adamw'"):
        optimizer_graph(parameters(), "adamv")
    with pytest.raises(UnknownNameError, match="groups"):
        optimizer_graph(parameters(), "sgd", groups=[ParameterGroup("head.*")])
    assert set(OPTIMIZERS) == {"sgd", "adam", "adamw", "rmsprop", "adagrad", "lion"}
