"""Along which lines a tensor is perturbed, and how far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Direction:
    """A line through a point.

    Attributes:
        label: The coordinate, or what direction it is, for people.
        vector: The direction, of length one and of the tensor's shape.
        scale: The length that a relative step of one stands for.
        is_coordinate: Whether a single element moves.
        full: Whether to take the whole sweep of steps along it, for the plot.
        is_random: Whether it is one of several that do as well.
    """

    label: str
    vector: Array
    scale: float
    is_coordinate: bool = False
    full: bool = False
    is_random: bool = False

    def derivative(self, gradient: Array) -> float:
        """The derivative along the line, from a gradient, whatever elements the line does not move."""
        moved = self.vector != 0.0
        return float(np.sum(gradient[moved] * self.vector[moved]))


def directions(
    point: Array, gradient: Array, max_coordinates: int, count: int, generator: np.random.Generator
) -> Iterator[Direction]:
    """The lines to check a tensor along.

    That of the gradient, where a derivative is largest beside the errors of evaluation; and every
    coordinate of a small tensor, or random directions of a large one. A random direction moves every
    element, so that one wrong element among many shows.

    Args:
        point: The tensor.
        gradient: Its gradient, as claimed.
        max_coordinates: Up to how many elements every coordinate is checked.
        count: How many random directions there are for a larger tensor.
        generator: Source of the random directions.
    """
    if point.size == 0:
        return
    whole = length_scale(point)
    length = float(np.linalg.norm(gradient))
    if 0.0 < length < math.inf:
        unit: Any = gradient / length
        yield Direction("along the gradient", unit, whole, full=True)
    if point.size <= max_coordinates:
        typical = whole / math.sqrt(point.size)
        for index in np.ndindex(*point.shape):
            vector = np.zeros(point.shape)
            vector[index] = 1.0
            scale = max(abs(float(point[index])), typical)
            yield Direction(str(list(map(int, index))), vector, scale, is_coordinate=True)
        return
    for number in range(count):
        signs: Any = generator.integers(0, 2, point.shape) * 2.0 - 1.0
        unit = signs / math.sqrt(point.size)
        yield Direction(f"random direction {number + 1}", unit, whole, is_random=True)


def length_scale(point: Array) -> float:
    """The length of a tensor; that of ones where it is zero."""
    return float(np.linalg.norm(point)) or math.sqrt(max(point.size, 1))


def number_of_directions(gradient: Array, max_coordinates: int, count: int) -> int:
    """How many lines `directions` gives."""
    if gradient.size == 0:
        return 0
    along = 0.0 < float(np.linalg.norm(gradient)) < math.inf
    return along + (gradient.size if gradient.size <= max_coordinates else count)


def number_of_evaluations(size: int, max_coordinates: int, count: int, least: int, most: int) -> int:
    """About how often the model is evaluated for a tensor of `size` elements.

    Args:
        size: The number of elements.
        max_coordinates: Up to how many elements every coordinate is checked.
        count: How many random directions there are for a larger tensor.
        least: Evaluations along a coordinate, where few steps tell.
        most: Evaluations along the gradient, where all steps are taken, and along a direction that moves
            every element, where a deep network has kinks in all but the smallest steps.
    """
    if size == 0:
        return 0
    return most + (least * size if size <= max_coordinates else most * count)
