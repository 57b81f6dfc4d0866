"""Resize in every mode, against differences of ONNX Runtime's own result: it is linear, so they are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad
from tests.oracle import check, gradients, graph_model, single_node, with_shapes
from tests.rules.forms import check_linear, integers, normal

TRANSFORMATIONS = [
    "align_corners",
    "asymmetric",
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
]


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def resize_model(shape: tuple[int, ...], **settings: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Resize with constant region, scales or sizes, and an image of the given shape."""
    x = {"x": normal(*shape).astype(np.float32)}
    constants = {name: settings.pop(name) for name in ("roi", "scales", "sizes") if name in settings}
    names = [name if name in constants else "" for name in ("roi", "scales", "sizes")]
    node = onnx.helper.make_node("Resize", ["x", *names], ["y0"], **settings)
    return graph_model([node], x, ["y0"], initializers=constants, opset=19), x


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_scales(mode: str, transformation: str) -> None:
    scales = floats(1, 1, 1.6, 0.7)
    check_linear(
        *resize_model((1, 2, 3, 5), scales=scales, mode=mode, coordinate_transformation_mode=transformation)
    )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_sizes(mode: str) -> None:
    check_linear(*resize_model((1, 2, 3, 5), sizes=integers(1, 2, 2, 7), mode=mode))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_region(mode: str) -> None:
    region = floats(0, 0, 0.1, 0.2, 1, 1, 0.8, 1.3)
    settings = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize"}
    for extrapolation in (0.0, 5.0):
        check_linear(
            *resize_model(
                (1, 1, 3, 5),
                roi=region,
                sizes=integers(1, 1, 2, 7),
                extrapolation_value=extrapolation,
                **settings,
            )
        )


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("transformation", ["asymmetric", "half_pixel"])
@pytest.mark.parametrize("scales", [(2, 3), (2, 0.7)], ids=str)
def test_nearest(scales: tuple[float, float], transformation: str, rounding: str) -> None:
    check_linear(
        *resize_model(
            (1, 2, 2, 3),
            scales=floats(1, 1, *scales),
            nearest_mode=rounding,
            coordinate_transformation_mode=transformation,
        )
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
        {"mode": "cubic", "antialias": 1},
        {"mode": "linear", "antialias": 1},
    ],
    ids=str,
)
def test_options(settings: dict[str, Any]) -> None:
    check_linear(*resize_model((1, 1, 4, 5), scales=floats(1, 1, 0.6, 0.7), **settings))


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (-1, 2)], ids=str)
def test_axes(axes: tuple[int, int]) -> None:
    check_linear(*resize_model((1, 2, 3, 4), sizes=integers(2, 5), mode="linear", axes=axes))


@pytest.mark.parametrize(
    ("shape", "scales", "mode"),
    [
        ((2, 3), (2, 1.5), "linear"),
        ((1, 2, 3), (1, 1, 2), "nearest"),
        ((1, 1, 2, 3, 2), (1, 1, 2, 1.5, 2), "linear"),
        ((2, 2, 2, 3), (2, 1.5, 1.5, 2), "nearest"),
        ((3,), (2,), "nearest"),
    ],
    ids=str,
)
def test_other_ranks_and_axes(shape: tuple[int, ...], scales: tuple[float, ...], mode: str) -> None:
    check_linear(*resize_model(shape, scales=floats(*scales), mode=mode))


def model_with_operands(
    shape: tuple[int, ...], settings: dict[str, Any], **operands: np.ndarray
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Resize with region, scales or sizes that are known only at run time."""
    inputs = {"x": normal(*shape).astype(np.float32), "roi": None, "scales": None, "sizes": None, **operands}
    given = {name: array for name, array in inputs.items() if array is not None}
    return single_node("Resize", inputs, opset=19, **settings), given


# Onnx's inference fails where it knows the rank of an image, but not how many sizes there are.
WHERE_SIZES_VARY = ("static", "unknown")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_operands_at_run_time(mode: str) -> None:
    shape, settings = (1, 2, 3, 4), {"mode": mode}
    check_linear(*model_with_operands(shape, settings, scales=floats(1, 1, 2, 1.5)))
    check_linear(*model_with_operands(shape, settings, sizes=integers(1, 2, 4, 6)), WHERE_SIZES_VARY)
    settings["coordinate_transformation_mode"] = "tf_crop_and_resize"
    region = floats(0, 0, 0.1, 0.2, 1, 1, 0.8, 1.3)
    sizes = integers(1, 2, 2, 6)
    check_linear(*model_with_operands(shape, settings, roi=region, sizes=sizes), WHERE_SIZES_VARY)
    settings["axes"] = [3, 2]
    region, sizes = floats(0.1, 0.2, 0.8, 1.3), integers(6, 2)
    check_linear(*model_with_operands(shape, settings, roi=region, sizes=sizes), WHERE_SIZES_VARY)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 2, 1, 3), (1, 1, 2, 1, 1, 2, 1, 2)], ids=str)
def test_scales_for_an_unknown_number_of_axes(shape: tuple[int, ...]) -> None:
    scales = floats(*(1.5 if length > 1 else 2 for length in shape))
    check_linear(*model_with_operands(shape, {}, scales=scales), ("unknown",))


def test_more_axes_than_expected_fail_when_run() -> None:
    model, inputs = model_with_operands((1,) * 8 + (2,), {}, scales=floats(*[1] * 8, 2))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="Expand"):
        gradients(with_shapes(model, "unknown"), inputs, {"y0": np.ones((1,) * 8 + (4,), np.float32)}, ["x"])


SIZES = [(2, 3), (2, 8), (7, 8), (1, 1)]


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "cubic", "coordinate_transformation_mode": "half_pixel_symmetric"},
        {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
    ],
    ids=str,
)
def test_kept_aspect_ratio(settings: dict[str, Any], policy: str) -> None:
    settings = {**settings, "keep_aspect_ratio_policy": policy}
    for sizes in SIZES:
        check_linear(
            *resize_model((1, 1, 3, 5), sizes=integers(*sizes), axes=[2, 3], **settings), ("static",)
        )
    sizes_at_run_time = model_with_operands((1, 1, 3, 5), {**settings, "axes": [3, 2]}, sizes=integers(4, 4))
    check_linear(*sizes_at_run_time, WHERE_SIZES_VARY)
    from_end = model_with_operands((1, 1, 3, 5), {**settings, "axes": [-2, -1]}, sizes=integers(2, 4))
    check_linear(*from_end, WHERE_SIZES_VARY)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_kept_aspect_ratio_of_all_axes(policy: str) -> None:
    settings = {"keep_aspect_ratio_policy": policy}
    for sizes in [(7, 4, 8), (1, 1, 2)]:
        check_linear(*model_with_operands((2, 1, 3), settings, sizes=integers(*sizes)), WHERE_SIZES_VARY)


def test_kept_aspect_ratio_of_a_region() -> None:
    region = floats(0.1, -0.2, 0.8, 1.3)
    settings = {"keep_aspect_ratio_policy": "not_larger", "axes": [2, 3], "mode": "linear"}
    settings["coordinate_transformation_mode"] = "tf_crop_and_resize"
    check_linear(*resize_model((1, 1, 3, 5), roi=region, sizes=integers(5, 7), **settings))


def test_an_antialiasing_filter_that_reaches_far() -> None:
    """The weights of an axis that another one decides about, where the image shrinks by a lot."""
    settings = {"keep_aspect_ratio_policy": "not_larger", "axes": [2, 3], "mode": "cubic", "antialias": 1}
    check_linear(*resize_model((1, 1, 9, 26), sizes=integers(2, 20), **settings), ("static",))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_lengths_of_one(mode: str) -> None:
    for transformation in TRANSFORMATIONS:
        settings = {"mode": mode, "coordinate_transformation_mode": transformation}
        check_linear(*resize_model((1, 1, 1, 4), sizes=integers(1, 1, 3, 1), **settings), ("static",))


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.5, 0.5)], ids=str)
def test_an_empty_batch(scales: tuple[float, ...], knowledge: str) -> None:
    model, x = resize_model((0, 2, 2, 4), scales=floats(*scales), mode="nearest")
    dy = {"y0": np.empty((0, 2, int(2 * scales[2]), int(4 * scales[3])), np.float32)}
    assert gradients(with_shapes(model, knowledge), x, dy, ["x"])["x"].shape == (0, 2, 2, 4)


# What PyTorch's modes are in ONNX; a cubic filter against aliasing has another coefficient there.
TORCH_MODES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"mode": "nearest"}, {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    ({"mode": "nearest-exact"}, {"nearest_mode": "round_prefer_ceil"}),
    ({"mode": "bilinear"}, {"mode": "linear"}),
    (
        {"mode": "bilinear", "align_corners": True},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    ({"mode": "bilinear", "antialias": True}, {"mode": "linear", "antialias": 1, "exclude_outside": 1}),
    ({"mode": "bicubic"}, {"mode": "cubic"}),
    (
        {"mode": "bicubic", "align_corners": True},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    ),
    (
        {"mode": "bicubic", "antialias": True},
        {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
    ),
]


@pytest.mark.parametrize(("torch_settings", "settings"), TORCH_MODES, ids=lambda settings: str(settings))
def test_agrees_with_pytorch(torch_settings: dict[str, Any], settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    for size in [(6, 3), (1, 1), (5, 9), (3, 5)]:
        model, inputs = resize_model((2, 2, 3, 5), sizes=integers(2, 2, *size), **settings)
        x = torch.tensor(inputs["x"], requires_grad=True)
        y = torch.nn.functional.interpolate(x, size=size, **torch_settings)
        dy = normal(*y.shape, seed=2).astype(np.float32)
        y.backward(torch.tensor(dy))
        actual = gradients(model, inputs, {"y0": dy}, ["x"])["x"]
        np.testing.assert_allclose(actual, x.grad, rtol=1e-4, atol=1e-5)


def test_sizes_beside_empty_scales() -> None:
    """As exporters wrote it at opset 11, where the scales could not be left out."""
    x = {"x": normal(1, 1, 2, 3).astype(np.float32)}
    node = onnx.helper.make_node("Resize", ["x", "roi", "scales", "sizes"], ["y0"], mode="linear")
    constants = {"roi": floats(), "scales": floats(), "sizes": integers(1, 1, 4, 5)}
    check_linear(graph_model([node], x, ["y0"], initializers=constants, opset=11), x)


def test_upsample_is_lifted_to_resize() -> None:
    x = {"x": normal(1, 1, 2, 3).astype(np.float32)}
    node = onnx.helper.make_node("Upsample", ["x", "scales"], ["y0"], mode="linear")
    model = graph_model([node], x, ["y0"], initializers={"scales": floats(1, 1, 2, 2)}, opset=9)
    check_linear(model, x)


@pytest.mark.parametrize("scales", [(2, 1.7), (0.6, 0.45), (0.6, 1.7)], ids=str)
def test_opset_10_rounds_up_where_it_shrinks(scales: tuple[float, float]) -> None:
    x = {"x": normal(1, 1, 5, 6).astype(np.float32)}
    node = onnx.helper.make_node("Resize", ["x", "scales"], ["y0"])
    given = {"scales": floats(1, 1, *scales)}
    check_linear(graph_model([node], x, ["y0"], initializers=given, opset=10), x)
    check_linear(graph_model([node], {**x, **given}, ["y0"], opset=10), {**x, **given})


def test_enlarging_by_integers_is_undone_by_one_pooling() -> None:
    model, _ = resize_model((1, 2, 3, 4), scales=floats(1, 1, 2, 2))
    backward = [node.op_type for node in onnx_grad.vjp(model, ["x"]).graph.node]
    assert backward == ["Resize", "AveragePool", "Mul"]


@pytest.mark.parametrize(
    ("scales", "knowledge"),
    [((1, 1, 2, 2), "static"), ((1, 1, 1.5, 0.5), "static"), ((1, 1, 1.5, 0.5), "unknown")],
    ids=str,
)
def test_second_order(scales: tuple[float, ...], knowledge: str) -> None:
    inputs = {"x": normal(1, 1, 2, 4), "scales": floats(*scales)}
    resized = onnx.helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="linear")
    square = onnx.helper.make_node("Mul", ["r", "r"], ["y"])
    given = {} if knowledge == "unknown" else {"scales": inputs.pop("scales")}
    model = graph_model([resized, square], inputs, ["y"], initializers=given, opset=19)
    check(model, inputs, second_order=True, shapes=[knowledge])


def test_half_precision() -> None:
    model, x = resize_model((1, 1, 3, 4), scales=floats(1, 1, 1.5, 0.5), mode="linear")
    narrow = {"x": x["x"].astype(np.float16)}
    node = model.graph.node[0]
    constants = {"scales": floats(1, 1, 1.5, 0.5)}
    halved = graph_model([node], narrow, ["y0"], initializers=constants, opset=19)
    dy = normal(1, 1, 4, 2).astype(np.float32)
    expected = gradients(model, x, {"y0": dy}, ["x"])["x"]
    actual = gradients(halved, narrow, {"y0": dy.astype(np.float16)}, ["x"])["x"]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, expected, rtol=5e-3, atol=5e-3)
