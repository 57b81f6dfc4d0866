"""How much of a result is rounding of the intermediate values of a model.

Perturbed inputs alone do not always tell: tanh(20) is 1 whatever the last digit of 20, and yet 1 - y² hangs
on the last digit of y. Here every intermediate value is scaled by one plus or minus a unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.checking.noise import REPETITIONS, largest_change

Array: TypeAlias = np.ndarray[Any, Any]
Epsilon: TypeAlias = Callable[[ir.Value], float]


def intermediate_noise(
    model: ir.Model,
    evaluate: Callable[[ir.Model], Mapping[str, Any]],
    results: Mapping[str, Any],
    epsilon: Epsilon,
) -> dict[str, float]:
    """The largest change of each result over a few perturbations of the intermediate values.

    Args:
        model: A model in float64.
        evaluate: Evaluates a variant of it at the point.
        results: What it gives itself, in float64.
        epsilon: The relative size of a unit in the last place of a value; 0 for one to leave alone.

    Returns:
        The noise by result, in its own units. Zero, which excuses nothing, where a result is not made of
        finite numbers or changes its shape.
    """
    noise = dict.fromkeys(results, 0.0)
    for variant in _variants(model, epsilon):
        again = evaluate(variant)
        for name, result in results.items():
            noise[name] = max(noise[name], largest_change(again[name], result))
    return {name: value if np.isfinite(value) else 0.0 for name, value in noise.items()}


def _variants(model: ir.Model, epsilon: Epsilon) -> Iterator[ir.Model]:
    generator = np.random.default_rng(0)
    for _ in range(REPETITIONS):
        copy = model.clone()
        for node in list(copy.graph):
            for value in node.outputs:
                if value.dtype is ir.DataType.DOUBLE and value.name and value.uses():
                    _scale(copy.graph, node, value, 1.0 + generator.choice([-1.0, 1.0]) * epsilon(value))
        yield copy


def _scale(graph: ir.Graph, node: ir.Node, value: ir.Value, factor: float) -> None:
    """Let all that reads `value` read `factor` times that."""
    if factor == 1.0:
        return
    content = ir.Tensor(np.array(factor), name=f"{value.name}/factor")
    constant = ir.Value(
        name=content.name, type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([]), const_value=content
    )
    graph.register_initializer(constant)
    scaled = ir.Value(name=f"{value.name}/scaled", type=value.type, shape=value.shape)
    multiplication = ir.Node("", "Mul", [value, constant], outputs=[scaled], name=f"{value.name}/scaling")
    for use in tuple(value.uses()):
        if use.node is not multiplication:
            use.node.replace_input_with(use.idx, scaled)
    graph.insert_after(node, multiplication)
