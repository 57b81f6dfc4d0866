"""Products with weights of a few bits, and tables of them, against PyTorch: the weights are frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.rules.fused import ALWAYS, check, node_model, normal, torch

GENERATOR = np.random.default_rng(0)
OUTPUTS, BLOCK = 3, 16


def _packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of so many bits in bytes, along the last axis, the first in the lowest bits."""
    per_byte = 8 // bits
    missing = -numbers.shape[-1] % per_byte
    padded = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], missing), np.uint8)], -1)
    groups = padded.reshape(*padded.shape[:-1], -1, per_byte)
    return np.asarray(np.bitwise_or.reduce([groups[..., i] << bits * i for i in range(per_byte)]))


class TestNBits:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize("inputs", [32, 40], ids=["whole blocks", "a block in part"])
    @pytest.mark.parametrize("zero_point", ["none", "packed", "float"])
    def test_every_layout(self, bits: int, inputs: int, zero_point: str) -> None:
        blocks = -(-inputs // BLOCK)
        levels = GENERATOR.integers(0, 2**bits, (OUTPUTS, blocks, BLOCK)).astype(np.uint8)
        zeros = GENERATOR.integers(0, 2**bits, (OUTPUTS, blocks)).astype(np.uint8)
        z = np.full_like(zeros, 2 ** (bits - 1)) if zero_point == "none" else zeros

        def product(a: Any, _: Any, scales: Any, zeros: Any, __: Any, bias: Any) -> Any:
            at = zeros if zero_point == "float" else torch.tensor(z, dtype=torch.float64)
            weights = (torch.tensor(levels, dtype=torch.float64) - at[..., None]) * scales[..., None]
            return a @ weights.flatten(1)[:, :inputs].T + bias

        given = {"none": None, "packed": _packed(zeros, bits), "float": zeros.astype(np.float64)}
        check(
            "MatMulNBits",
            {
                "a": normal(2, 4, inputs) / 2**bits,
                "b": _packed(levels, bits),
                "scales": normal(OUTPUTS, blocks),
                "zeros": given[zero_point],
                "g_idx": None,
                "bias": normal(OUTPUTS),
            },
            product,
            # The kernel has none for zero points in float of weights of 8 bits.
            dtypes=() if (bits, zero_point) == (8, "float") else (np.float32,),
            shapes=ALWAYS if zero_point == "packed" else ("static",),
            second_order=zero_point == "float",
            constants=("b",),
            bits=bits,
            block_size=BLOCK,
            K=inputs,
            N=OUTPUTS,
        )

    @pytest.mark.parametrize(
        ("attributes", "order", "message"),
        [({"weight_prepacked": 1}, None, "weight_prepacked"), ({}, np.zeros(32, np.int32), "g_idx")],
        ids=["laid out for a device", "an order of activations"],
    )
    def test_refusals(self, attributes: dict[str, int], order: np.ndarray | None, message: str) -> None:
        inputs = {
            "a": normal(2, 32),
            "b": np.zeros((OUTPUTS, 2, 8), np.uint8),
            "scales": normal(OUTPUTS, 2),
            "zeros": None,
            "g_idx": order,
        }
        model = node_model("MatMulNBits", inputs, K=32, N=OUTPUTS, block_size=BLOCK, **attributes)
        with pytest.raises(onnx_grad.UnsupportedOpError, match=message):
            onnx_grad.vjp(model, "a")


# The numbers that `quant_type` 0 and 1 of bitsandbytes have.
FP4 = np.outer([1, -1], [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 6 / 12, 2 / 12, 3 / 12]).ravel()
NF4 = np.array(
    "-1 -.6961928 -.52507305 -.3949175 -.28444138 -.18477343 -.09105004 0 .0795803 .1609302 .2461123 "
    ".33791524 .44070983 .562617 .72295684 1".split(),
    dtype=np.float64,
)


@pytest.mark.parametrize("quant_type", [0, 1])
@pytest.mark.parametrize("inputs", [32, 20], ids=["whole blocks", "a block in part"])
def test_bnb4(quant_type: int, inputs: int) -> None:
    table = torch.tensor(NF4 if quant_type else FP4)
    levels = GENERATOR.integers(0, 16, OUTPUTS * inputs)
    blocks = -(-OUTPUTS * inputs // BLOCK)

    def product(a: Any, _: Any, largest: Any) -> Any:
        spread = largest.repeat_interleave(BLOCK)[: OUTPUTS * inputs]
        weights = (table[torch.tensor(levels)] * spread).reshape(OUTPUTS, inputs)
        return a @ weights.T

    check(
        "MatMulBnb4",
        {
            "a": normal(2, inputs),
            "b": (levels[::2] << 4 | levels[1::2]).astype(np.uint8),
            "absmax": np.abs(normal(blocks)),
        },
        product,
        rtol=1e-6,
        second_order=False,
        quant_type=quant_type,
        block_size=BLOCK,
        K=inputs,
        N=OUTPUTS,
    )


def test_bnb4_as_backward_passes_use_it_is_refused() -> None:
    inputs = {"a": normal(2, OUTPUTS), "b": np.zeros(48, np.uint8), "absmax": normal(6)}
    sizes = {"K": 32, "N": OUTPUTS, "block_size": BLOCK, "quant_type": 0}
    model = node_model("MatMulBnb4", inputs, transB=0, **sizes)
    with pytest.raises(onnx_grad.UnsupportedOpError, match="transB = 0"):
        onnx_grad.vjp(model, "a")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_zeros", [True, False])
def test_gathered_rows_of_a_table(bits: int, has_zeros: bool) -> None:
    levels = GENERATOR.integers(0, 2**bits, (7, 40)).astype(np.uint8)
    zeros = GENERATOR.integers(0, 2**bits, (7, 3)).astype(np.uint8)
    indices = np.array([[1, 0, 6], [1, 1, 2]])

    def gather(_: Any, indices: Any, scales: Any, __: Any) -> Any:
        at = torch.tensor(zeros if has_zeros else np.full_like(zeros, 2 ** (bits - 1)), dtype=torch.float64)
        at, spread = (x.repeat_interleave(BLOCK, 1)[:, :40] for x in (at, scales))
        return ((torch.tensor(levels, dtype=torch.float64) - at) * spread)[indices]

    check(
        "GatherBlockQuantized",
        {
            "table": _packed(levels, bits),
            "indices": indices,
            "scales": normal(7, 3),
            "zeros": _packed(zeros, bits) if has_zeros else None,
        },
        gather,
        constants=("table",),
        second_order=False,
        bits=bits,
        block_size=BLOCK,
        quantize_axis=1,
    )
