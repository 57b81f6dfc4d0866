"""Losses: class weights, ignored labels, every reduction, further axes, and the log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import normal, positive

F = torch.nn.functional

# The axes behind the classes.
FURTHER = [(), (2, 3), (2, 1, 3), (0,)]


def losses(op_type: str) -> Iterator[Row]:
    in_pytorch = F.nll_loss if op_type == "NegativeLogLikelihoodLoss" else F.cross_entropy
    for reduction in ("none", "mean", "sum"):
        for further in FURTHER:
            if 0 in further and reduction == "mean":
                continue
            for weighted, ignored in ((False, None), (True, None), (False, 2), (True, -1)):
                yield _loss(op_type, in_pytorch, reduction, further, weighted, ignored)


def _loss(
    op_type: str,
    in_pytorch: Any,
    reduction: str,
    further: tuple[int, ...],
    weighted: bool,
    ignored: int | None,
) -> Row:
    labels = np.random.default_rng(1).integers(0, 4, (3, *further))
    if ignored == -1:
        labels = np.where(labels == 2, -1, labels)
    inputs: dict[str, np.ndarray | None] = {"x": normal(3, 4, *further), "t": labels}
    attributes: dict[str, Any] = {"reduction": reduction}
    if weighted:
        inputs["w"] = positive(4)
    if ignored is not None:
        attributes["ignore_index"] = ignored

    def function(x: Any, t: Any, w: Any = None) -> Any:
        options = {"reduction": reduction, "ignore_index": -100 if ignored is None else ignored}
        # PyTorch has no derivative with respect to class weights: written out.
        if w is None:
            return in_pytorch(x, t, **options)
        log_probability = x if in_pytorch is F.nll_loss else x.log_softmax(1)
        kept = torch.ones_like(t, dtype=torch.bool) if ignored is None else t != ignored
        label = torch.where(kept, t, 0)
        share = torch.where(kept, w[label], 0.0)
        each = -share * log_probability.gather(1, label[:, None]).squeeze(1)
        return each if reduction == "none" else each.sum() / (share.sum() if reduction == "mean" else 1)

    return Row(op_type, inputs, function, attributes)


@rows(*losses("NegativeLogLikelihoodLoss"))
def test_negative_log_likelihood(row: Row) -> None:
    agree(row)


@rows(*losses("SoftmaxCrossEntropyLoss"))
def test_softmax_cross_entropy(row: Row) -> None:
    agree(row)


@rows(
    *(
        Row(
            "SoftmaxCrossEntropyLoss",
            {"x": normal(3, 4, 2) * 4, "t": np.random.default_rng(1).integers(0, 4, (3, 2))},
            lambda x, t, r=reduction: (F.cross_entropy(x, t, reduction=r), x.log_softmax(1)),
            {"reduction": reduction},
            outputs=2,
        )
        for reduction in ("none", "mean", "sum")
    )
)
def test_log_probabilities_have_a_cotangent_too(row: Row) -> None:
    agree(row)
