"""FusedConv, NhwcConv and NhwcFusedConv against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import evaluator, given_names, with_shapes
from tests.rules.fused import RANKED, check, node_model, normal, torch

ACTIVATIONS: dict[str, tuple[list[float], Any]] = {
    "Clip": ([-0.5, 0.75], lambda x: x.clamp(-0.5, 0.75)),
    "HardSigmoid": ([0.25, 0.5], lambda x: (0.25 * x + 0.5).clamp(0, 1)),
    "HardSwish": ([], torch.nn.functional.hardswish),
    "LeakyRelu": ([0.25], lambda x: torch.nn.functional.leaky_relu(x, 0.25)),
    "Relu": ([], torch.relu),
    "Sigmoid": ([], torch.sigmoid),
    "Tanh": ([], torch.tanh),
}
OPTIONS = {"pads": [1, 0, 1, 2], "strides": [2, 1], "dilations": [1, 2]}


def _conv(x: Any, w: Any, b: Any, groups: int = 1) -> Any:
    padded = torch.nn.functional.pad(x, (0, 2, 1, 1))
    return torch.nn.functional.conv2d(padded, w, b, stride=(2, 1), dilation=(1, 2), groups=groups)


X, W, B = normal(2, 2, 5, 6), normal(4, 2, 3, 3), normal(4)
Z = normal(*_conv(*map(torch.tensor, (X, W, B))).shape)


class TestFusedConv:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation(self, activation: str) -> None:
        parameters, apply = ACTIVATIONS[activation]
        given = {"activation_params": parameters} if parameters else {}
        check(
            "FusedConv",
            {"x": X, "w": W, "b": B},
            lambda x, w, b: apply(_conv(x, w, b)),
            second_order=activation == "Tanh",
            shapes=("static",),
            activation=activation,
            **given,
            **OPTIONS,
        )

    @pytest.mark.parametrize("bias", [B, None], ids=["bias", "no bias"])
    def test_a_residual_is_added_before_the_activation(self, bias: np.ndarray | None) -> None:
        check(
            "FusedConv",
            {"x": X, "w": W, "b": bias, "z": Z},
            lambda x, w, b, z: torch.relu(_conv(x, w, b) + z),
            second_order=False,
            shapes=RANKED,
            activation="Relu",
            **OPTIONS,
        )

    def test_groups(self) -> None:
        check(
            "FusedConv",
            {"x": normal(2, 4, 5, 6), "w": W, "b": B},
            lambda x, w, b: torch.relu(_conv(x, w, b, groups=2)),
            second_order=False,
            shapes=(),
            activation="Relu",
            group=2,
            **OPTIONS,
        )


def test_nhwc_conv() -> None:
    check(
        "NhwcConv",
        {"x": np.moveaxis(X, 1, -1), "w": W, "b": B},
        lambda x, w, b: _conv(x.movedim(-1, 1), w, b).movedim(1, -1),
        dtypes=(),
        second_order=False,
        **OPTIONS,
    )


def test_nhwc_fused_conv() -> None:
    check(
        "NhwcFusedConv",
        {"x": np.moveaxis(X, 1, -1), "w": W, "b": None, "z": np.moveaxis(Z, 1, -1)},
        lambda x, w, b, z: torch.tanh(_conv(x.movedim(-1, 1), w, b).movedim(1, -1) + z),
        dtypes=(),
        second_order=False,
        activation="Tanh",
        **OPTIONS,
    )


def test_an_unknown_layout_is_refused() -> None:
    model = with_shapes(node_model("NhwcConv", {"x": X, "w": W}), "unknown")
    with pytest.raises(onnx_grad.UnsupportedOpError, match="which axis holds the channels"):
        onnx_grad.vjp(model)


def test_an_infinite_cotangent_does_not_pass_what_the_activation_does_not_select() -> None:
    """√relu(w ⋆ x) at w ⋆ x < 0, where the cotangent of the activation is infinite."""
    model = node_model("FusedConv", {"x": np.float32(X), "w": np.float32(W)}, ["y"], activation="Relu")
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["y"], ["root"]))
    model.graph.output[0].name = "root"
    transformed = onnx_grad.vjp(model, "x")
    seeds, gradients = given_names(transformed)
    point = {"x": -np.abs(np.float32(X)), "w": np.abs(np.float32(W))}
    values = evaluator(transformed)({**point, seeds["root"]: np.ones((2, 4, 3, 4), dtype=np.float32)})
    assert not np.isnan(values[gradients["x"]]).any()


def test_a_model_laid_out_for_one_machine_is_refused() -> None:
    model = node_model("Conv", {"x": np.float32(X), "w": np.float32(W)}, domain="com.microsoft.nchwc")
    model.opset_import.add(domain="com.microsoft.nchwc", version=1)
    with pytest.raises(onnx_grad.UnsupportedOpError, match="ORT_ENABLE_EXTENDED instead of ORT_ENABLE_ALL"):
        onnx_grad.vjp(model)
