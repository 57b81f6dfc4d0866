"""A model over a batch against the same model run for one example after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

import onnx_grad
from onnx_grad import registry
from onnx_grad.batching import SEQUENTIAL
from onnx_grad.builder import METADATA_PREFIX
from onnx_grad.registry import State
from tests.oracle import evaluator

Array = np.ndarray
Arrays = Mapping[str, Array]
SIZE = 3


def batch_of(array: Array, axis: int = 0, size: int = SIZE) -> Array:
    """Examples like `array` that differ in their numbers, not in their sign or order of magnitude."""
    if array.dtype.kind != "f":
        return np.stack([array] * size, axis=axis)
    generator = np.random.default_rng(array.size)
    factors = generator.uniform(0.93, 1.07, (size, *array.shape))
    factors[0] = 1.0
    return np.moveaxis((array * factors).astype(array.dtype), 0, axis)


def one_by_one(model: onnx.ModelProto, inputs: Arrays, in_axes: Mapping[str, int]) -> dict[str, Array]:
    """The outputs of `model` for each example, stacked along axis 0."""
    run = evaluator(model)
    size = next(inputs[name].shape[axis] for name, axis in in_axes.items())
    results = [
        run({n: np.asarray(a.take(i, axis=in_axes[n])) if n in in_axes else a for n, a in inputs.items()})
        for i in range(size)
    ]
    return {name: np.stack([np.asarray(result[name]) for result in results]) for name in results[0]}


def check(
    model: onnx.ModelProto,
    inputs: Arrays,
    in_axes: Mapping[str, int],
    *,
    out_axes: int = 0,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    **options: int,
) -> onnx.ModelProto:
    """Assert that the batched model gives what the model gives for each example; returns it.

    All that it was built of can be differentiated.

    Args:
        model: A model of one example.
        inputs: Its inputs, those in `in_axes` for several examples.
        in_axes: Where the new axis is.
        out_axes: Where it is to be in the outputs.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        **options: Of `vmap`.
    """
    batched = onnx_grad.vmap(model, in_axes, out_axes, **options)
    assert not _without_gradient(batched, {node.op_type for node in model.graph.node})
    expected = one_by_one(model, inputs, in_axes)
    actual = evaluator(batched)(inputs)
    assert list(actual) == list(expected)
    for name, array in expected.items():
        array = np.moveaxis(array, 0, out_axes)
        assert actual[name].dtype == array.dtype
        assert actual[name].shape == array.shape, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(actual[name], array, rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(actual[name], array, err_msg=name)
    return batched


def _without_gradient(batched: onnx.ModelProto, own: set[str]) -> list[str]:
    """The operators that batching added, save those that were there, whose gradient is not known."""
    key = METADATA_PREFIX + "batched_node"
    emitted = {n.op_type for n in batched.graph.node if any(e.key == key for e in n.metadata_props)}
    states = {operator: registry.lookup("", operator).state for operator in emitted - own}
    return [operator for operator, state in states.items() if state not in (State.RULE, State.ZERO)]


def scans(model: onnx.ModelProto) -> list[str]:
    """The operators that run in a `Scan` over the examples."""
    notes = (entry for node in model.graph.node for entry in node.metadata_props)
    return [entry.value for entry in notes if entry.key == SEQUENTIAL]


def mapped_together(inputs: Arrays, names: Sequence[str]) -> dict[str, Array]:
    """The inputs, those named for several examples."""
    return {name: batch_of(array) if name in names else array for name, array in inputs.items()}
