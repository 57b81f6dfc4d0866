"""Arrays against what a model declares of its inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnx_grad.errors import InputError
from onnx_grad.signature import Bound, InputSpec, as_array, check_names, dtype_of


def spec(*shape: int | str | None, dtype: ir.DataType = ir.DataType.FLOAT) -> InputSpec:
    return InputSpec("x", dtype, shape)


def test_a_specification_reads_like_a_type() -> None:
    assert str(spec("batch", 3, None)) == "float32[batch, 3, ?]"
    assert str(InputSpec("x", ir.DataType.INT64, None)) == "int64[…]"


def test_symbols_are_bound_by_the_first_array() -> None:
    bound: dict[str, Bound] = {}
    spec("n", 3).check(ir.DataType.FLOAT, (4, 3), bound)
    assert bound == {"n": Bound(4, "x")}
    with pytest.raises(InputError, match="dimension 0 is 'n', which is 4 in input 'x'"):
        InputSpec("y", ir.DataType.FLOAT, ("n",)).check(ir.DataType.FLOAT, (5,), bound)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        (ir.DataType.DOUBLE, (2, 3), r"expects float32\[2, 3\], and float64\[2, 3\] was given"),
        (ir.DataType.FLOAT, (3,), "of rank 2, and .* of rank 1"),
        (ir.DataType.FLOAT, (2, 4), "dimension 1 must be 3"),
    ],
)
def test_what_does_not_fit_is_refused(dtype: ir.DataType, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec(2, 3).check(dtype, shape, {})


def test_an_unknown_rank_takes_every_shape() -> None:
    InputSpec("x", ir.DataType.FLOAT, None).check(ir.DataType.FLOAT, (1, 2, 3), {})


def test_numbers_without_a_type_take_the_expected_one() -> None:
    assert as_array(spec(2), [1, 2.5]).dtype == np.float32
    assert as_array(spec(), 3).dtype == np.float32
    with pytest.raises(InputError, match="float64 numbers were given"):
        as_array(spec(dtype=ir.DataType.INT64), 0.5)


def test_an_array_keeps_its_type() -> None:
    assert as_array(spec(1), np.ones(1)).dtype == np.float64


def test_ragged_lists_and_objects_are_refused() -> None:
    for value in ([[1.0], [1.0, 2.0]], object()):
        with pytest.raises(InputError, match="input 'x' expects"):
            as_array(spec(2), value)


def test_types_that_onnx_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="no element type for arrays of datetime64"):
        dtype_of(np.zeros(1, "datetime64[s]"))


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(InputError, match=r"there is no input 'imag'; did you mean 'image'\?"):
        check_names("input", ["imag"], ["image", "mask"])


def test_the_number_of_elements_needs_every_dimension() -> None:
    assert spec(2, "n").size({"n": Bound(3, "x")}) == 6
    assert spec(2, "n").size({}) is None
    assert spec(2, None).size({}) is None
    assert spec().size({}) == 1
