"""How much of a result is rounding: what changes when every input changes by a unit in its last place.

A number computed from rounded inputs is known no better than that. Where the result changes by as much as it
is large, it is ill-conditioned at this point, and two right evaluations need not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = Mapping[str, Any]

REPETITIONS = 3

# Two evaluations may differ by this multiple of the noise: every operation rounds, not only the inputs, and
# the largest of a few samples is not the largest there is.
ALLOWANCE = 10.0

_FLOATS = frozenset(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))


def rounding_noise(
    evaluate: Callable[[Feeds], Mapping[str, Any]], feeds: Feeds, results: Mapping[str, Any]
) -> dict[str, float]:
    """The largest change of each result over a few perturbations of its inputs in their last digit.

    Args:
        evaluate: What is to be judged.
        feeds: Its inputs, in the types that it computes in.
        results: What it gives for `feeds`.

    Returns:
        The noise by result, in its own units. Zero, which excuses nothing, where a result is not made of
        finite numbers or changes its shape.
    """
    noise = dict.fromkeys(results, 0.0)
    for again in repetitions(evaluate, feeds):
        for name, result in results.items():
            noise[name] = max(noise[name], largest_change(again[name], result))
    return {name: value if np.isfinite(value) else 0.0 for name, value in noise.items()}


def repetitions(evaluate: Callable[[Feeds], Mapping[str, Any]], feeds: Feeds) -> Iterator[Mapping[str, Any]]:
    """What `evaluate` gives for a few perturbations of all float inputs by one unit in the last place."""
    generator = np.random.default_rng(0)
    for _ in range(REPETITIONS):
        yield evaluate({name: perturbed(value, generator) for name, value in feeds.items()})


def perturbed(value: Any, generator: np.random.Generator) -> Any:
    """`value` with every float but zeros moved by one unit in its last place, up or down at random."""
    if isinstance(value, list):
        return [perturbed(item, generator) for item in value]
    if not isinstance(value, np.ndarray) or value.dtype not in _FLOATS:
        return value
    up = generator.integers(0, 2, value.shape, dtype=bool)
    towards = np.where(up, np.inf, -np.inf).astype(value.dtype)
    return np.where(value == 0, value, np.nextafter(value, towards))


def largest_change(a: Any, b: Any) -> float:
    """The largest difference of two results; `inf` where they have no elements in common."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.shape != b.shape:
        return np.inf
    if b.dtype not in _FLOATS:
        return 0.0
    with np.errstate(invalid="ignore"):
        change = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float("inf") if np.isnan(change).any() else float(np.max(change, initial=0.0))
