"""Handwritten digits: scikit-learn's 1797 images of 8 by 8 pixels, split once and for all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

EXAMPLES = 32
"""How many held-out images ``digits.npz`` holds."""


@dataclass(frozen=True)
class Digits:
    """Images with what they show.

    Attributes:
        image: float32 ``[n, 1, 8, 8]``, ink from 0 to 1; the input of ``digits_cnn``.
        label: int64 ``[n]``, the digit.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]

    @property
    def pixels(self) -> npt.NDArray[np.float32]:
        """The same images, float32 ``[n, 64]``; the input of ``digits_mlp``."""
        return self.image.reshape(len(self.image), -1)


def split() -> tuple[Digits, Digits]:
    """1347 images to train with and 450 held out, each digit as frequent in one as in the other.

    Raises:
        ModuleNotFoundError: scikit-learn, which ships the images, is not installed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    image = (bunch.images[:, None] / 16.0).astype(np.float32)
    label = bunch.target.astype(np.int64)
    train_image, test_image, train_label, test_label = train_test_split(
        image, label, test_size=0.25, random_state=0, stratify=label
    )
    return Digits(train_image, train_label), Digits(test_image, test_label)


def accuracy(logits: npt.NDArray[np.float32], label: npt.NDArray[np.int64]) -> float:
    """The fraction of rows of ``logits [n, 10]`` whose largest entry is at ``label [n]``."""
    return float(np.mean(np.argmax(logits, axis=1) == label))


def save_examples(path: Path) -> None:
    """Writes the first held-out images, under the input names of both models, and their labels."""
    _, test = split()
    np.savez_compressed(
        path,
        image=test.image[:EXAMPLES],
        pixels=test.pixels[:EXAMPLES],
        label=test.label[:EXAMPLES],
    )
