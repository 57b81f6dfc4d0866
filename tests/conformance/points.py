"""Points beside that of a case.

Data of backend cases is full of round numbers: ties, zeros, the edges of domains. What lies there is not
compared, so that a point beside, where all is smooth, must show that the gradient is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Numbers beyond these, such as those that mask an attention or that nobody ever set, are brought back.
SMALL, LARGE = 1e-4, 1e4


def beside(point: Mapping[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Points nearby where all numbers in the inputs `names` are finite and none is zero, nor two equal.

    Which way leads into the model's domain is not known: nearer to zero, away from it with zeros moved up
    or down, or among positive numbers alone.
    """
    for moved in (
        lambda x, step: np.where(abs(x) < SMALL, step, x * (1.0 - step)),
        lambda x, step: np.where(abs(x) < SMALL, step, x * (1.0 + step)),
        lambda x, step: np.where(abs(x) < SMALL, -step, x * (1.0 + step)),
        lambda x, step: np.abs(x) + step,
    ):
        generator = np.random.default_rng(0)
        nearby = dict(point)
        for name in names:
            if name in point:
                x = np.asarray(point[name])
                steps = generator.uniform(0.01, 0.05, x.shape)
                finite = np.nan_to_num(x.astype(np.float64), nan=1.0, posinf=1.0, neginf=-1.0)
                nearby[name] = np.asarray(moved(np.clip(finite, -LARGE, LARGE), steps)).astype(x.dtype)
        yield nearby
