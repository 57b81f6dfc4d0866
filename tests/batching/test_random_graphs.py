"""Random graphs over batches, their gradients too, whatever is known of their shapes."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx

import onnx_grad
from tests.batching.examples import batch_of, check, one_by_one
from tests.oracle import SHAPE_KNOWLEDGE, given_names, gradients, quiet_vjp, with_shapes
from tests.test_random_graphs import graphs
from tests.test_random_programs import programs

Array = np.ndarray


@hypothesis.given(data=st.data(), case=graphs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE))
@hypothesis.settings(max_examples=12, deadline=None)
def test_values(data: st.DataObject, case: tuple[onnx.ModelProto, dict[str, Array]], knowledge: str) -> None:
    model, inputs = case
    names = data.draw(st.lists(st.sampled_from(sorted(inputs)), min_size=1, unique=True))
    axes = {name: data.draw(st.integers(0, inputs[name].ndim)) for name in names}
    mapped = inputs | {name: batch_of(inputs[name], axis) for name, axis in axes.items()}
    check(with_shapes(model, knowledge), mapped, axes)


@hypothesis.given(case=graphs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE))
@hypothesis.settings(max_examples=12, deadline=None)
def test_gradients(case: tuple[onnx.ModelProto, dict[str, Array]], knowledge: str) -> None:
    model, inputs = case
    outputs = [output.name for output in model.graph.output]
    gradient = quiet_vjp(with_shapes(model, knowledge), sorted(inputs), outputs)
    mapped = {name: batch_of(array) for name, array in inputs.items()}
    values = one_by_one(model, mapped, dict.fromkeys(mapped, 0))
    cotangents, _ = given_names(gradient)
    seeds = {cotangents[y]: np.cos(np.arange(values[y].size)).reshape(values[y].shape) for y in outputs}
    check(gradient, mapped | seeds, dict.fromkeys([*mapped, *seeds], 0))


@hypothesis.given(
    case=programs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE), names=st.sampled_from(["a", "b", "ab"])
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_programs_of_control_flow(
    case: tuple[onnx.ModelProto, dict[str, Array]], knowledge: str, names: str
) -> None:
    model, inputs = case
    mapped = inputs | {name: batch_of(inputs[name]) for name in names}
    try:
        check(with_shapes(model, knowledge), mapped, dict.fromkeys(names, 0))
    except onnx_grad.UnsupportedOpError as refused:
        if "number of its iterations differs" not in str(refused):
            raise


@hypothesis.given(
    case=programs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE), names=st.sampled_from(["", "a"])
)
@hypothesis.settings(max_examples=12, deadline=None)
def test_gradients_of_control_flow(
    case: tuple[onnx.ModelProto, dict[str, Array]], knowledge: str, names: str
) -> None:
    model, inputs = case
    outputs = [output.name for output in model.graph.output]
    gradient = quiet_vjp(with_shapes(model, knowledge), sorted(inputs), outputs)
    mapped = inputs | {name: batch_of(inputs[name]) for name in names}
    cotangents, _ = given_names(gradient)
    seeds = {cotangents[y]: batch_of(np.cos(np.arange(2.0) + i)) for i, y in enumerate(outputs)}
    try:
        check(gradient, mapped | seeds, dict.fromkeys([*names, *seeds], 0))
    except onnx_grad.UnsupportedOpError as refused:
        if "number of its iterations differs" not in str(refused):
            raise


def _check_gradient_of_batch(
    model: onnx.ModelProto, inputs: dict[str, Array], knowledge: str, names: list[str]
) -> None:
    """The gradient of the batched model: that of each example, summed where all examples share an input."""
    known, axes = with_shapes(model, knowledge), dict.fromkeys(names, 0)
    outputs = [output.name for output in model.graph.output]
    mapped = inputs | {name: batch_of(inputs[name]) for name in names}
    values = one_by_one(model, mapped, axes)
    seeds = {y: np.cos(np.arange(values[y].size)).reshape(values[y].shape) for y in outputs}
    gradient = quiet_vjp(known, sorted(inputs), outputs)
    cotangents, own = given_names(gradient)
    every = mapped | {cotangents[y]: seed for y, seed in seeds.items()}
    expected = one_by_one(gradient, every, axes | {cotangents[y]: 0 for y in outputs})
    try:
        batched = onnx_grad.vmap(known, axes)
    except onnx_grad.UnsupportedOpError as refused:
        if "number of its iterations differs" not in str(refused):
            raise
        return
    actual = gradients(batched, mapped, seeds, sorted(inputs))
    for x in inputs:
        array = expected[own[x]]
        array = array if x in names else array.sum(axis=0)
        np.testing.assert_allclose(actual[x], array, rtol=1e-5, atol=1e-7)


@hypothesis.given(data=st.data(), case=graphs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE))
@hypothesis.settings(max_examples=8, deadline=None)
def test_gradients_of_batches(
    data: st.DataObject, case: tuple[onnx.ModelProto, dict[str, Array]], knowledge: str
) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(case[1])), min_size=1, unique=True))
    _check_gradient_of_batch(*case, knowledge, names)


@hypothesis.given(
    case=programs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE), names=st.sampled_from(["a", "ab"])
)
@hypothesis.settings(max_examples=6, deadline=None)
def test_gradients_of_batched_control_flow(
    case: tuple[onnx.ModelProto, dict[str, Array]], knowledge: str, names: str
) -> None:
    _check_gradient_of_batch(*case, knowledge, list(names))
