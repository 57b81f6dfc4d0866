"""FusedMatMul, TransposeMatMul, FusedGemm and GemmFastGelu against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.rules.fused import ALWAYS, check, node_model, normal, torch


def _product(transposed: str, rows_first: str, alpha: float) -> Any:
    def multiply(a: Any, b: Any) -> Any:
        a, b = (x.movedim(0, -2) if name in rows_first else x for name, x in (("A", a), ("B", b)))
        a, b = (x.mT if name in transposed and x.dim() > 1 else x for name, x in (("A", a), ("B", b)))
        return alpha * (a @ b)

    return multiply


def _check_product(
    a: np.ndarray, b: np.ndarray, *, transposed: str = "", rows_first: str = "", **options: Any
) -> None:
    alpha = options.get("alpha", 1.0)
    attributes = {f"trans{name}": 1 for name in transposed} | {f"transBatch{name}": 1 for name in rows_first}
    reference = _product(transposed, rows_first, alpha)
    check("FusedMatMul", {"a": a, "b": b}, reference, shapes=ALWAYS, **attributes, **options)


class TestFusedMatMul:
    @pytest.mark.parametrize("transposed", ["", "A", "B", "AB"])
    def test_stacks_of_matrices(self, transposed: str) -> None:
        a = normal(2, 3, 4, 3) if "A" in transposed else normal(2, 3, 3, 4)
        b = normal(3, 5, 4) if "B" in transposed else normal(3, 4, 5)
        _check_product(a, b, transposed=transposed, alpha=0.5)

    @pytest.mark.parametrize("transposed", ["", "A", "B", "AB"])
    def test_matrices(self, transposed: str) -> None:
        a = normal(4, 3) if "A" in transposed else normal(3, 4)
        b = normal(5, 4) if "B" in transposed else normal(4, 5)
        _check_product(a, b, transposed=transposed, second_order=False)

    def test_a_linear_layer(self) -> None:
        _check_product(normal(2, 3, 4), normal(5, 4), transposed="B", alpha=2.0)

    @pytest.mark.parametrize("transposed", ["", "A"])
    def test_rows_on_the_first_axis(self, transposed: str) -> None:
        a = normal(4, 2, 6, 3) if transposed else normal(3, 2, 6, 4)
        _check_product(a, normal(5, 2, 6, 4).swapaxes(0, 3), transposed=transposed, rows_first="AB")

    def test_vectors(self) -> None:
        _check_product(normal(4), normal(2, 4, 5))
        _check_product(normal(2, 3, 4), normal(4))

    @pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4)], ids=str)
    def test_a_vector_and_transposed_matrices(self, shape: tuple[int, ...]) -> None:
        check("FusedMatMul", {"a": normal(4), "b": normal(*shape)}, _product("B", "", 1.0), transB=1)
        # Here the kernel gives values that are not those of the definition, so only the gradient is compared.
        inputs = {"a": normal(*shape).mT, "b": normal(4)}
        check("FusedMatMul", inputs, _product("A", "", 1.0), dtypes=(), transA=1)

    def test_its_older_name(self) -> None:
        check(
            "TransposeMatMul",
            {"a": normal(2, 4, 3), "b": normal(2, 4, 5)},
            _product("A", "", 1.0),
            transA=1,
        )


ACTIVATIONS: dict[str, tuple[dict[str, float], Any]] = {
    "Celu": ({"alpha": 0.5}, lambda x: torch.nn.functional.celu(x, 0.5)),
    "Elu": ({"alpha": 0.5}, lambda x: torch.nn.functional.elu(x, 0.5)),
    "HardSigmoid": ({"alpha": 0.25, "beta": 0.5}, lambda x: (0.25 * x + 0.5).clamp(0, 1)),
    "LeakyRelu": ({"alpha": 0.25}, lambda x: torch.nn.functional.leaky_relu(x, 0.25)),
    "ParametricSoftplus": ({"alpha": 0.5, "beta": 2.0}, lambda x: 0.5 * torch.log1p(torch.exp(2 * x))),
    "Relu": ({}, torch.relu),
    "ScaledTanh": ({"alpha": 0.5, "beta": 2.0}, lambda x: 0.5 * torch.tanh(2 * x)),
    "Selu": (
        {"alpha": 1.5, "gamma": 1.25},
        lambda x: 1.25 * torch.where(x > 0, x, 1.5 * torch.expm1(x)),
    ),
    "Sigmoid": ({}, torch.sigmoid),
    "Softplus": ({}, torch.nn.functional.softplus),
    "Softsign": ({}, torch.nn.functional.softsign),
    "Tanh": ({}, torch.tanh),
    "ThresholdedRelu": ({"alpha": 0.5}, lambda x: torch.where(x > 0.5, x, 0.0)),
}


class TestFusedGemm:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation(self, activation: str) -> None:
        parameters, apply = ACTIVATIONS[activation]
        check(
            "FusedGemm",
            {"a": normal(3, 4), "b": normal(4, 5), "c": normal(5)},
            lambda a, b, c: apply(a @ b + c),
            shapes=ALWAYS if activation == "Relu" else ("static",),
            second_order=activation in ("Relu", "Tanh"),
            rtol=1e-6 if activation in ("Celu", "Elu", "Softplus", "ParametricSoftplus") else 1e-7,
            activation=activation,
            **{f"activation_{name}": value for name, value in parameters.items()},
        )

    def test_attributes_of_gemm(self) -> None:
        check(
            "FusedGemm",
            {"a": normal(4, 3), "b": normal(5, 4), "c": normal(3, 1)},
            lambda a, b, c: torch.relu(0.5 * (a.T @ b.T) + 2 * c),
            activation="Relu",
            transA=1,
            transB=1,
            alpha=0.5,
            beta=2.0,
        )

    def test_no_activation_and_no_bias(self) -> None:
        check("FusedGemm", {"a": normal(3, 4), "b": normal(4, 5)}, lambda a, b: a @ b, dtypes=())

    def test_the_product_is_not_computed_again_where_the_result_tells_the_slope(self) -> None:
        inputs = {"a": normal(3, 4), "b": normal(4, 5), "c": normal(5)}
        model = node_model("FusedGemm", inputs, activation="LeakyRelu", activation_alpha=0.1)
        gradient = onnx_grad.vjp(model, "a")
        assert sum(node.op_type in ("Gemm", "FusedGemm") for node in gradient.graph.node) == 2

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"activation": "Cubic"}, "applies the activation 'Cubic'"),
            ({"activation": "LeakyRelu"}, "lacks the parameters alpha"),
        ],
        ids=["unknown", "without parameters"],
    )
    def test_what_is_not_defined_is_refused(self, attributes: dict[str, str], message: str) -> None:
        model = node_model("FusedGemm", {"a": normal(3, 4), "b": normal(4, 5)}, **attributes)
        with pytest.raises(onnx_grad.UnsupportedOpError, match=message):
            onnx_grad.vjp(model)


@pytest.mark.parametrize("bias", [normal(5), None], ids=["bias", "no bias"])
def test_gemm_fast_gelu(bias: np.ndarray | None) -> None:
    check(
        "GemmFastGelu",
        {"x": normal(2, 3, 4), "w": normal(4, 5), "b": bias},
        lambda x, w, b: torch.nn.functional.gelu(x @ w + (0 if b is None else b), approximate="tanh"),
        dtypes=(),
        shapes=ALWAYS,
    )
