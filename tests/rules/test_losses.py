"""Losses of the specification, differentiated through their function bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import check, gradients, single_node

GENERATOR = np.random.default_rng(4)
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.3])
IGNORED = -100


def _inputs(shape: tuple[int, ...], *, weighted: bool, ignoring: bool) -> dict[str, np.ndarray]:
    labels = GENERATOR.integers(0, shape[1], (shape[0], *shape[2:]))
    if ignoring:
        labels.flat[0] = IGNORED
    inputs = {"scores": GENERATOR.standard_normal(shape), "labels": labels}
    return {**inputs, "weights": WEIGHTS} if weighted else inputs


@pytest.mark.parametrize("ignoring", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_reductions(op_type: str, reduction: str, weighted: bool, ignoring: bool) -> None:
    inputs = _inputs((2, 4, 2), weighted=weighted, ignoring=ignoring)
    attributes: dict[str, Any] = {"ignore_index": IGNORED} if ignoring else {}
    check(single_node(op_type, inputs, reduction=reduction, **attributes), inputs)


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 2, 2), (1, 4, 1)], ids=str)
@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_shapes(op_type: str, shape: tuple[int, ...]) -> None:
    inputs = _inputs(shape, weighted=True, ignoring=shape[0] > 1)
    model = single_node(op_type, inputs, ignore_index=IGNORED)
    check(model, inputs, second_order=len(shape) == 2, rtol=1e-5)


@pytest.mark.parametrize("opset", [12, 13, 22])
@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_opsets_and_narrow_labels(op_type: str, opset: int) -> None:
    inputs = _inputs((3, 4), weighted=True, ignoring=False)
    inputs["labels"] = inputs["labels"].astype(np.int32)
    check(single_node(op_type, inputs, opset=opset), inputs, shapes=["static"])


def test_log_probabilities_as_a_second_output() -> None:
    inputs = _inputs((2, 4, 2), weighted=True, ignoring=True)
    model = single_node("SoftmaxCrossEntropyLoss", inputs, outputs=2, ignore_index=IGNORED)
    check(model, inputs)
    check(model, inputs, of=["y1"])


def test_agrees_with_pytorch_for_large_and_masked_scores() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    scores = np.array([[1e4, 0, -1e4, 5], [0.5, -np.inf, 1, 2], [-np.inf, 3, -np.inf, -np.inf]], np.float32)
    labels = np.array([1, 3, 1])
    x = torch.tensor(scores, requires_grad=True)
    torch.nn.functional.cross_entropy(x, torch.tensor(labels)).backward()
    inputs = {"scores": scores, "labels": labels}
    model = single_node("SoftmaxCrossEntropyLoss", inputs)
    actual = gradients(model, inputs, {"y0": np.array(1, np.float32)}, ["scores"])["scores"]
    np.testing.assert_allclose(actual, x.grad, atol=1e-7)


def test_mean_over_the_elements_that_are_not_ignored() -> None:
    inputs = {"scores": np.zeros((3, 2)), "labels": np.array([0, IGNORED, 1])}
    model = single_node("SoftmaxCrossEntropyLoss", inputs, ignore_index=IGNORED)
    actual = gradients(model, inputs, {"y0": np.array(1.0)}, ["scores"])["scores"]
    np.testing.assert_allclose(actual, [[-0.25, 0.25], [0, 0], [0.25, -0.25]])
