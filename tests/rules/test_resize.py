"""Resize in every mode, against differences of ONNX Runtime's own result: it is linear, so they are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.errors import UnsupportedOpError
from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, graph_model, single_node, with_shapes
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


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)], ids=str)
def test_axes(axes: tuple[int, int]) -> None:
    model, x = resize_model((1, 2, 3, 4), sizes=integers(2, 5), mode="linear", axes=axes)
    # Nothing tells the rank where only positive axes are given.
    check_linear(model, x, SHAPE_KNOWLEDGE if max(axes) < 0 else ("static", "symbolic"))


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


@pytest.mark.parametrize(
    "numbers", [{"scales": floats(1, 1, 2, 1.5)}, {"sizes": integers(1, 2, 4, 6)}], ids=str
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_scales_and_sizes_at_run_time(mode: str, numbers: dict[str, np.ndarray]) -> None:
    operands = {"x": None, "roi": None, "scales": None, "sizes": None, **numbers}
    operands["x"] = normal(1, 2, 3, 4).astype(np.float32)
    inputs = {name: array for name, array in operands.items() if array is not None}
    check_linear(single_node("Resize", operands, mode=mode, opset=19), inputs, ("static",))


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


def test_enlarging_by_integers_is_undone_by_one_pooling() -> None:
    model, _ = resize_model((1, 2, 3, 4), scales=floats(1, 1, 2, 2))
    backward = [node.op_type for node in onnx_grad.vjp(model, ["x"]).graph.node]
    assert backward == ["Resize", "AveragePool", "Mul"]


def test_second_order() -> None:
    for scales in ((1, 1, 2, 2), (1, 1, 1.5, 0.5)):
        x = {"x": normal(1, 1, 2, 4)}
        resized = onnx.helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="linear")
        square = onnx.helper.make_node("Mul", ["r", "r"], ["y"])
        model = graph_model([resized, square], x, ["y"], initializers={"scales": floats(*scales)}, opset=19)
        check(model, x, second_order=True, shapes=["static"])


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


def test_kept_aspect_ratio_is_refused() -> None:
    model, _ = resize_model((1, 1, 3, 4), sizes=integers(1, 1, 5, 5), keep_aspect_ratio_policy="not_larger")
    with pytest.raises(UnsupportedOpError, match="keep_aspect_ratio_policy='not_larger'"):
        onnx_grad.vjp(model, ["x"])


def test_an_unknown_rank_is_refused() -> None:
    operands = {"x": normal(2, 2).astype(np.float32), "roi": None, "scales": floats(2, 2)}
    model = with_shapes(single_node("Resize", operands, opset=19), "unknown")
    with pytest.raises(UnsupportedOpError, match="rank"):
        onnx_grad.vjp(model, ["x"])
