"""Operators that cut a block out of a tensor or add to its borders."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import check, graph_model
from tests.rules.forms import check_forms, check_narrow, integers, normal

LAST = np.iinfo(np.int64).max
FIRST = np.iinfo(np.int64).min
LAST_32 = np.iinfo(np.int32).max

# starts, ends, axes, steps of a slice of a 5 × 4 matrix
SLICES = {
    "rows": ((1,), (3,), None, None),
    "everything": ((0,), (LAST,), None, None),
    "no axes": ((), (), (), ()),
    "everything, 32-bit bound": ((0,), (LAST_32,), (1,), (1,)),
    "from the end": ((-3,), (-1,), (-1,), None),
    "far before the start": ((FIRST,), (2,), (0,), None),
    "far beyond the end": ((7,), (9,), (0,), None),
    "nothing": ((3,), (1,), (0,), None),
    "axes in any order": ((1, 0), (LAST, 2), (1, 0), (1, 1)),
    "even": ((0,), (LAST,), (0,), (2,)),
    "odd, last axis": ((1,), (LAST,), (-1,), (2,)),
    "both axes": ((1, 0), (LAST, 3), (0, 1), (2, 2)),
    "reversed": ((-1,), (FIRST,), (0,), (-1,)),
    "every second, backward": ((-2,), (FIRST,), (-2,), (-2,)),
    "backward from beyond the end": ((9,), (FIRST,), (0,), (-1,)),
    "backward and forward": ((3, 0), (0, 4), (0, 1), (-3, 3)),
    "backward, without the first": ((4, -9), (-9, 9), None, (-1, 1)),
    "a step beyond the end": ((0,), (5,), (0,), (9,)),
    "nothing, in steps": ((2,), (1,), (0,), (2,)),
    "nothing, backward": ((0,), (3,), (0,), (-1,)),
}


@pytest.mark.parametrize("case", SLICES.values(), ids=list(SLICES))
def test_slice(case: tuple[tuple[int, ...] | None, ...]) -> None:
    names = ("starts", "ends", "axes", "steps")
    numbers = {
        name: None if value is None else integers(*value) for name, value in zip(names, case, strict=True)
    }
    check_forms("Slice", {"x": normal(5, 4), **numbers})


@pytest.mark.parametrize("shape", [(0, 4), (1, 4)], ids=str)
@pytest.mark.parametrize("step", [1, 2, -1])
def test_slice_of_a_short_axis(shape: tuple[int, int], step: int) -> None:
    bounds = (integers(0), integers(LAST)) if step > 0 else (integers(-1), integers(FIRST))
    inputs = {
        "x": normal(*shape),
        "starts": bounds[0],
        "ends": bounds[1],
        "axes": integers(0),
        "steps": integers(step),
    }
    check_forms("Slice", inputs)


def test_slice_with_32_bit_bounds() -> None:
    numbers = {name: np.array([value], np.int32) for name, value in [("starts", -3), ("ends", LAST_32)]}
    check_forms("Slice", {"x": normal(5, 2), **numbers})


def test_slice_by_a_length_computed_in_the_graph() -> None:
    """x[:, : lengths[1]] as exporters write it: the bound is an element of another tensor's shape."""
    nodes = [
        onnx.helper.make_node("Shape", ["other"], ["length"], start=1),
        onnx.helper.make_node("Slice", ["x", "start", "length", "axis"], ["y"]),
    ]
    inputs = {"x": normal(2, 5), "other": normal(1, 3)}
    constants = {"start": integers(0), "axis": integers(1)}
    check(graph_model(nodes, inputs, ["y"], initializers=constants), inputs, wrt=["x"], second_order=True)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("shape", "pads", "axes"),
    [
        ((3, 4), (1, 2, 0, 1), None),
        ((3, 4), (0, 2), (-1,)),
        ((3, 4), (-1, 2, 1, -1), None),
        ((3, 4), (2, 1, 0, 1), (1, 0)),
        ((0, 2), (0, 1, 0, 0), None),
    ],
    ids=str,
)
def test_pad(mode: str, shape: tuple[int, ...], pads: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    if mode == "wrap" and 0 in shape:
        pytest.skip("ONNX Runtime cannot wrap an empty tensor")
    inputs = {
        "x": normal(*shape),
        "pads": integers(*pads),
        "constant": None,
        "axes": None if axes is None else integers(*axes),
    }
    check_forms("Pad", inputs, mode=mode, opset=19)


def test_pad_with_two_inputs() -> None:
    check_forms("Pad", {"x": normal(3), "pads": integers(1, 2)})


@pytest.mark.parametrize("shape", [(3, 4), (0, 2)], ids=str)
@pytest.mark.parametrize("pads", [(1, 0, 1, 2), (1, -1, 1, 1)], ids=str)
def test_pad_with_a_constant_to_differentiate(shape: tuple[int, ...], pads: tuple[int, ...]) -> None:
    check_forms("Pad", {"x": normal(*shape), "pads": integers(*pads), "constant": np.array(0.5)})


@pytest.mark.parametrize(("shape", "axes"), [((2, 7), None), ((3,), (-1,)), ((6, 3), (1, 0))], ids=str)
def test_center_crop_pad(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    attributes = {} if axes is None else {"axes": axes}
    check_forms("CenterCropPad", {"x": normal(4, 5), "shape": integers(*shape)}, **attributes)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("diagonal", [None, -1, 1, 9])
def test_trilu(diagonal: int | None, upper: int) -> None:
    if diagonal is None:
        check_forms("Trilu", {"x": normal(2, 3, 4)}, upper=upper)
    else:
        check_forms("Trilu", {"x": normal(3, 3), "k": np.array(diagonal)}, upper=upper)


@pytest.mark.parametrize(("time_axis", "batch_axis"), [(0, 1), (1, 0)])
def test_reverse_sequence(time_axis: int, batch_axis: int) -> None:
    inputs = {"x": normal(3, 3, 2), "sequence_lens": integers(1, 3, 2)}
    check_forms("ReverseSequence", inputs, time_axis=time_axis, batch_axis=batch_axis)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Slice", {"x": normal(5), "starts": integers(1), "ends": integers(4)}, {}),
        (
            "Slice",
            {
                "x": normal(5),
                "starts": integers(-1),
                "ends": integers(FIRST),
                "axes": integers(0),
                "steps": integers(-2),
            },
            {},
        ),
        ("Pad", {"x": normal(3, 2), "pads": integers(1, 1, 1, 1), "constant": np.array(0.5)}, {}),
        ("Pad", {"x": normal(3, 2), "pads": integers(2, 0, 1, 1)}, {"mode": "reflect"}),
        ("Trilu", {"x": normal(3, 3)}, {}),
    ],
    ids=["slice", "slice backward", "pad", "reflect", "trilu"],
)
def test_narrow_dtypes(op_type: str, inputs: dict[str, np.ndarray], attributes: dict[str, str]) -> None:
    check_narrow(op_type, inputs, **attributes)


def test_a_slice_of_known_bounds_is_one_pad() -> None:
    x = {"x": normal(5, 4)}
    node = onnx.helper.make_node("Slice", ["x", "starts", "ends"], ["y"])
    model = graph_model([node], x, ["y"], initializers={"starts": integers(1), "ends": integers(3)})
    backward = [n.op_type for n in onnx_grad.vjp(model, ["x"]).graph.node]
    assert backward == ["Slice", "Pad"]
