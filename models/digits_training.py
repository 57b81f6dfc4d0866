"""The training which ``digits_mlp`` and ``digits_cnn`` share."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from models import digits

BATCH = 64


def train(
    module: nn.Module,
    images: npt.NDArray[np.float32],
    label: npt.NDArray[np.int64],
    epochs: int,
) -> None:
    """Trains in place: AdamW on the cross-entropy, one-cycle learning rate, order of images seeded.

    Args:
        module: Maps a batch of images to logits ``[batch, 10]``.
        images: float32 ``[n, ...]``, in the layout which ``module`` takes.
        label: int64 ``[n]``.
        epochs: How often each image is seen.
    """
    inputs, targets = torch.from_numpy(images), torch.from_numpy(label)
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * math.ceil(len(inputs) / BATCH)
    )
    module.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(inputs), generator=order)
        for start in range(0, len(inputs), BATCH):
            batch = shuffled[start : start + BATCH]
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(module(inputs[batch]), targets[batch]))
            optimizer.step()
            schedule.step()
    module.eval()


def held_out_accuracy(
    module: nn.Module, images: npt.NDArray[np.float32], label: npt.NDArray[np.int64]
) -> float:
    """The fraction of images which ``module`` recognises."""
    with torch.no_grad():
        logits = module(torch.from_numpy(images)).numpy()
    return digits.accuracy(logits, label)
