"""Tensors with awkward shapes and values."""

from __future__ import annotations

import numpy as np


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed values."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    """Values above one tenth."""
    return np.asarray(np.abs(normal(*shape, seed=seed)) + 0.1)


def tied(*shape: int, seed: int = 0) -> np.ndarray:
    """Few different values, among them zero, so that there are ties."""
    return np.asarray(np.random.default_rng(seed).integers(-2, 3, shape), dtype=np.float64)


def integers(*values: int) -> np.ndarray:
    """A vector of int64."""
    return np.array(values, dtype=np.int64)
