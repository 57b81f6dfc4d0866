"""SimplifiedLayerNormalization, SkipLayerNormalization and their relatives against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.rules.fused import ALWAYS, RANKED, check, indices, node_model, normal, torch

HALVES = (np.float32, np.float16)


def _statistics(x: Any, epsilon: float) -> tuple[Any, Any]:
    mean = x.mean(-1, keepdim=True)
    return mean, torch.rsqrt(((x - mean) ** 2).mean(-1, keepdim=True) + epsilon)


def _layer_normalization(x: Any, gamma: Any, beta: Any, epsilon: float = 1e-12) -> Any:
    mean, r = _statistics(x, epsilon)
    y = (x - mean) * r * gamma
    return y if beta is None else y + beta


class TestSimplified:
    @pytest.mark.parametrize("axis", [-1, -2, 1])
    def test_every_axis(self, axis: int) -> None:
        def normalize(x: Any, scale: Any) -> Any:
            axes = list(range(axis % 3, 3))
            return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + 1e-5) * scale

        check(
            "SimplifiedLayerNormalization",
            {"x": normal(2, 3, 4), "scale": normal(4) if axis == -1 else normal(3, 4)},
            normalize,
            domain="",
            dtypes=HALVES if axis == -1 else (np.float32,),
            shapes=ALWAYS,
            axis=axis,
            epsilon=1e-5,
        )

    def test_the_saved_inverse_has_a_gradient_of_its_own(self) -> None:
        def inverse(x: Any, scale: Any) -> tuple[Any, Any]:
            r = torch.rsqrt((x * x).mean(-1, keepdim=True) + 0.1)
            return x * r * scale, r

        check(
            "SimplifiedLayerNormalization",
            {"x": normal(2, 3, 4), "scale": normal(4)},
            inverse,
            domain="",
            of=[1],
            second_order=False,
            epsilon=0.1,
        )


SKIPS = [(2, 3, 4), (1, 3, 4), (3, 4)]


class TestSkip:
    @pytest.mark.parametrize("shape", SKIPS, ids=str)
    @pytest.mark.parametrize("has_biases", [True, False], ids=["biases", "no biases"])
    def test_layer_normalization(self, shape: tuple[int, ...], has_biases: bool) -> None:
        beta, bias = (normal(4, seed=seed) if has_biases else None for seed in (2, 3))

        def normalize(x: Any, skip: Any, gamma: Any, beta: Any, bias: Any) -> tuple[Any, ...]:
            total = x + skip + (0 if bias is None else bias)
            return _layer_normalization(total, gamma, beta), None, None, total

        check(
            "SkipLayerNormalization",
            {
                "x": normal(2, 3, 4),
                "skip": normal(*shape, seed=1),
                "gamma": normal(4),
                "beta": beta,
                "bias": bias,
            },
            normalize,
            dtypes=HALVES if shape == (2, 3, 4) else (np.float32,),
            shapes=ALWAYS,
            second_order=has_biases,
        )

    def test_the_saved_statistics_have_gradients_of_their_own(self) -> None:
        def normalize(x: Any, skip: Any, gamma: Any) -> tuple[Any, ...]:
            total = x + skip
            return _layer_normalization(total, gamma, None, 0.1), *_statistics(total, 0.1), total

        check(
            "SkipLayerNormalization",
            {"x": normal(5, 4), "skip": normal(5, 4, seed=1), "gamma": normal(4)},
            normalize,
            epsilon=0.1,
        )

    @pytest.mark.parametrize("bias", [normal(4, seed=3), None], ids=["bias", "no bias"])
    @pytest.mark.parametrize("of", [[0, 3], [3]], ids=["both outputs", "the sum alone"])
    def test_simplified(self, bias: np.ndarray | None, of: list[int]) -> None:
        def normalize(x: Any, skip: Any, gamma: Any, bias: Any) -> tuple[Any, ...]:
            total = x + skip + (0 if bias is None else bias)
            r = torch.rsqrt((total * total).mean(-1, keepdim=True) + 1e-12)
            return total * r * gamma, None, None, total

        check(
            "SkipSimplifiedLayerNormalization",
            {"x": normal(2, 3, 4), "skip": normal(2, 3, 4, seed=1), "gamma": normal(4), "bias": bias},
            normalize,
            of=of,
            dtypes=HALVES,
            shapes=ALWAYS,
        )

    def test_the_sum_is_the_forward_node_s_own(self) -> None:
        x = normal(2, 3, 4)
        inputs = {"x": np.float32(x), "skip": np.float32(x), "gamma": np.float32(normal(4))}
        for op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
            gradient = onnx_grad.vjp(node_model(op_type, inputs), "x")
            assert [node.op_type for node in gradient.graph.node].count("Add") <= 1

    def test_an_output_without_a_definition_is_refused(self) -> None:
        inputs = {"x": normal(3, 4), "skip": normal(3, 4), "gamma": normal(4)}
        model = node_model("SkipSimplifiedLayerNormalization", inputs, ["y", "mean"])
        with pytest.raises(onnx_grad.UnsupportedOpError, match="output 1 has no defined content"):
            onnx_grad.vjp(model, of="y")


WORDS = indices([1, 2, 3], [4, 10, 0])
SEGMENTS = indices([0, 1, 1], [0, 0, 1])


class TestEmbedding:
    @pytest.mark.parametrize("segments", [SEGMENTS, None], ids=["segments", "no segments"])
    @pytest.mark.parametrize(
        "positions",
        [None, indices([2, 0, 5], [1, 1, 1]), indices([2, 0, 5])],
        ids=["in order", "given", "shared"],
    )
    def test_gradients_of_every_table(
        self, segments: np.ndarray | None, positions: np.ndarray | None
    ) -> None:
        def embed(*inputs: Any) -> tuple[Any, ...]:
            words, segments, word, position, segment, gamma, beta, mask, positions = inputs
            at = torch.arange(3) if positions is None else positions.long()
            total = word[words.long()] + position[at]
            if segments is not None:
                total = total + segment[segments.long()]
            return _layer_normalization(total, gamma, beta), mask.sum(1).int(), total

        check(
            "EmbedLayerNormalization",
            {
                "words": WORDS,
                "segments": segments,
                "word": normal(11, 4),
                "position": normal(8, 4),
                "segment": None if segments is None else normal(2, 4),
                "gamma": normal(4),
                "beta": normal(4, seed=1),
                "mask": indices([1, 1, 0], [1, 1, 1]),
                "positions": positions,
            },
            embed,
            shapes=RANKED,
            second_order=segments is None,
        )
