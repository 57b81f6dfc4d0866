"""The masks of `training_mode` as random numbers: what a fair coin does, at every ratio, place and seed."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_grad
from tests.graphs import parse

COUNT = 2**18
RATIOS = (0.1, 0.5, 0.9)


@functools.cache
def session(ratio: float, name: str = "drop", shape: str = "[N]") -> onnxruntime.InferenceSession:
    model = parse(
        f"g (float{shape} x) => (float{shape} y, bool{shape} kept) "
        f"<float r = {{{ratio}}}> {{ [{name}] y, kept = Dropout (x, r) }}"
    )
    return onnxruntime.InferenceSession(onnx_grad.training_mode(model).SerializeToString())


def mask(
    ratio: float, seed: int = 0, name: str = "drop", count: int = COUNT
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    feeds = {"x": np.ones(count, np.float32), "seed": np.array(seed)}
    return session(ratio, name).run(["kept"], feeds)[0]


def standard(kept: np.ndarray, ratio: float) -> np.ndarray:
    """Zero mean and unit variance, if the elements are kept with probability 1 − ratio."""
    return (kept - (1 - ratio)) / np.sqrt(ratio * (1 - ratio))


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """At every distance, in standard deviations of independent sequences."""
    spectrum = np.fft.rfft(a) * np.conj(np.fft.rfft(b))
    return np.fft.irfft(spectrum, len(a)) / np.sqrt(len(a))


# The largest of 2¹⁸ normal numbers is beyond 6 once in 2000 times.
LARGEST = 6.0


@pytest.mark.parametrize("ratio", [*RATIOS, 0.001])
def test_the_ratio(ratio: float) -> None:
    deviations = [standard(mask(ratio, seed), ratio).sum() / np.sqrt(COUNT) for seed in range(30)]

    assert np.abs(deviations).max() < 4
    assert 0.6 < np.std(deviations) < 1.4


@pytest.mark.parametrize("ratio", RATIOS)
def test_blocks_vary_as_independent_elements_do(ratio: float) -> None:
    for size in (8, 64, 1024):
        blocks = standard(mask(ratio), ratio).reshape(-1, size).sum(axis=1) / np.sqrt(size)
        assert blocks.var() == pytest.approx(1, abs=5 * np.sqrt(2 / len(blocks)))


@pytest.mark.parametrize("ratio", RATIOS)
def test_elements_at_any_distance_are_uncorrelated(ratio: float) -> None:
    for seed in range(5):
        z = standard(mask(ratio, seed), ratio)
        assert np.abs(correlations(z, z)[1:]).max() < LARGEST


@pytest.mark.parametrize("ratio", RATIOS)
def test_seeds_are_uncorrelated_at_any_distance(ratio: float) -> None:
    z = standard(mask(ratio, 0), ratio)
    for seed in (1, 2, 3, -1, 2**20, 2**31, 2**62, 1_700_000_000_000_000_000):
        assert np.abs(correlations(z, standard(mask(ratio, seed), ratio))).max() < LARGEST


def test_layers_are_uncorrelated_at_any_distance() -> None:
    first, second = (standard(mask(0.5, name=name), 0.5) for name in ("drop", "drop_1"))

    assert np.abs(correlations(first, second)).max() < LARGEST


def test_an_element_over_many_seeds() -> None:
    """In training it is the seed that counts on."""
    z = standard(np.stack([mask(0.5, seed, count=64) for seed in range(4096)]), 0.5)
    covariance = z.T @ z / np.sqrt(4096)

    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 5
    for element in z.T[:8]:
        assert np.abs(correlations(element, element)[1:]).max() < 5


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_patterns_are_as_frequent_as_they_should_be(ratio: float) -> None:
    """Pearson's χ² of eight elements in a row."""
    patterns = np.packbits(mask(ratio).reshape(-1, 8))
    kept = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
    expected = len(patterns) * (1.0 - ratio) ** kept * ratio ** (8 - kept)
    chi_square = ((np.bincount(patterns, minlength=256) - expected) ** 2 / expected).sum()

    assert chi_square == pytest.approx(255, abs=5 * np.sqrt(2 * 255))


@pytest.mark.parametrize("distances", [(1, 2), (1, 3), (7, 64), (512, 513), (1024, 2048)])
def test_three_elements_are_independent(distances: tuple[int, int]) -> None:
    """Pairs of a sequence can be independent where triples are not, as those of a square are not."""
    z = standard(mask(0.3), 0.3)
    product = z * np.roll(z, distances[0]) * np.roll(z, distances[1])

    assert abs(product.sum()) / np.sqrt(COUNT) < 4


def test_the_same_seed_gives_the_same_mask() -> None:
    np.testing.assert_array_equal(mask(0.5, 7), mask(0.5, 7))


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("[N, M]", (64, 48)),
        ("[64, 48]", (64, 48)),
        ("[N, 6, 8, M]", (8, 6, 8, 8)),
        ("[N, 1, M]", (3072, 1, 1)),
        ("[N, C, 1, 1]", (64, 48, 1, 1)),
        ("[N, C, D, H, W]", (2, 3, 8, 8, 8)),
        ("[]", (64, 48)),
        ("[]", (3072,)),
    ],
    ids=str,
)
def test_the_mask_goes_by_the_position_in_memory(shape: str, sizes: tuple[int, ...]) -> None:
    """Whatever is known of the shape; `[]` is of unknown rank here."""
    model = parse(
        f"g (float{shape} x) => (bool{shape} kept) <float r = {{0.5}}> {{ [drop] y, kept = Dropout (x, r) }}"
    )
    if shape == "[]":
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.ClearField("shape")
    made = onnxruntime.InferenceSession(onnx_grad.training_mode(model).SerializeToString())
    (kept,) = made.run(None, {"x": np.ones(sizes, np.float32), "seed": np.array(3)})

    np.testing.assert_array_equal(kept, mask(0.5, 3, count=3072).reshape(sizes))


@pytest.mark.parametrize("sizes", [(), (0, 3), (3, 0), (1, 1)], ids=str)
def test_small_shapes(sizes: tuple[int, ...]) -> None:
    dims = "[" + ", ".join(f"D{i}" for i in range(len(sizes))) + "]"
    scalar = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    model = parse(f"g (float{dims} x) => (float{dims} y) {{ y = Dropout (x) }}")
    if not sizes:
        model.graph.input[0].type.CopyFrom(scalar)
        model.graph.output[0].type.CopyFrom(scalar)
    made = onnxruntime.InferenceSession(onnx_grad.training_mode(model).SerializeToString())
    (y,) = made.run(None, {"x": np.ones(sizes, np.float32), "seed": np.array(0)})

    assert y.shape == sizes
    assert np.isin(y, [0, 2]).all()


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_the_reference_evaluator_draws_the_same(seed: int) -> None:
    """Nothing depends on who computes: all arithmetic is of integers modulo 2⁶⁴."""
    model = parse("g (float[N, M] x) => (bool[N, M] kept) { [drop] y, kept = Dropout (x) }")
    feeds = {"x": np.ones((7, 11), np.float32), "seed": np.array(seed)}
    (kept,) = ReferenceEvaluator(onnx_grad.training_mode(model)).run(None, feeds)

    np.testing.assert_array_equal(kept, mask(0.5, seed, count=77).reshape(7, 11))
