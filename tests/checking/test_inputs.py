"""Inputs that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnx_grad.checking.inputs import complete_inputs
from onnx_grad.errors import InputError, UnknownNameError
from onnx_grad.signature import InputSpec

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def complete(
    *specs: InputSpec,
    given: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    return complete_inputs(specs, given or {}, dims or {}, ranges or {}, np.random.default_rng(seed))


def shapes(inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in inputs.items()}


def test_floats_are_normal_in_the_declared_type() -> None:
    for dtype in (FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        x = complete(InputSpec("x", dtype, (1000,)))["x"]
        assert x.dtype == dtype.numpy()
        assert abs(x.astype(float).mean()) < 0.2
        assert 0.8 < x.astype(float).std() < 1.2


def test_a_seed_makes_the_same_numbers() -> None:
    spec = InputSpec("x", FLOAT, (5,))
    np.testing.assert_array_equal(complete(spec)["x"], complete(spec)["x"])
    assert (complete(spec)["x"] != complete(spec, seed=1)["x"]).any()


def test_symbols_have_distinct_small_sizes() -> None:
    inputs = complete(InputSpec("x", FLOAT, ("batch", "length", 4)), InputSpec("y", FLOAT, ("length", None)))
    assert shapes(inputs) == {"x": (2, 3, 4), "y": (3, 2)}


def test_sizes_can_be_given() -> None:
    spec = InputSpec("x", FLOAT, ("batch", "length"))
    assert shapes(complete(spec, dims={"length": 7})) == {"x": (2, 7)}
    with pytest.raises(
        UnknownNameError, match="no input has a dimension 'bach'; there are: 'batch', 'length'"
    ):
        complete(spec, dims={"bach": 2})


def test_a_given_input_fixes_the_sizes_of_others() -> None:
    specs = InputSpec("x", FLOAT, ("n",)), InputSpec("y", FLOAT, ("n", 2))
    given = {"y": np.ones((5, 2), np.float32)}
    assert shapes(complete(*specs, given=given)) == {"x": (5,), "y": (5, 2)}


def test_expressions_of_symbols_are_evaluated() -> None:
    specs = InputSpec("x", FLOAT, ("s - 4", "2*s")), InputSpec("y", FLOAT, ("s",))
    assert shapes(complete(*specs, dims={"s": 6})) == {"x": (2, 12), "y": (6,)}


def test_integers_come_from_their_range() -> None:
    spec = InputSpec("ids", INT64, (200,))
    assert set(complete(spec)["ids"]) == {0, 1}
    assert set(complete(spec, ranges={"ids": (5, 8)})["ids"]) == {5, 6, 7}
    with pytest.raises(UnknownNameError, match="no integer input 'x'; there are: 'ids'"):
        complete(spec, ranges={"x": (0, 1)})
    with pytest.raises(InputError, match="is empty"):
        complete(spec, ranges={"ids": (3, 3)})


def test_booleans_are_both() -> None:
    assert set(complete(InputSpec("mask", ir.DataType.BOOL, (50,)))["mask"]) == {True, False}


def test_an_input_with_a_default_is_left_out() -> None:
    assert complete(InputSpec("x", FLOAT, (2,), required=False)) == {}


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec("x", FLOAT, None),
        InputSpec("x", ir.DataType.STRING, (2,)),
        InputSpec("x", None, None, is_tensor=False),
    ],
)
def test_what_cannot_be_made_up_must_be_given(spec: InputSpec) -> None:
    with pytest.raises(InputError, match=r"inputs={'x': …}"):
        complete(spec)


def test_what_is_given_is_checked() -> None:
    spec = InputSpec("x", FLOAT, (2,))
    with pytest.raises(InputError, match="there is no input 'z'"):
        complete(spec, given={"z": 1})
    with pytest.raises(InputError, match="dimension 0 must be 2"):
        complete(spec, given={"x": np.ones(3, np.float32)})
