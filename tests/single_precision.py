"""The oracle for operators without a float64 kernel in ONNX Runtime: differences in float32, in large steps.

Fourth-order central differences are exact for polynomials up to degree four in one coordinate, whatever the
step, so that operators which are linear in each operand lose nothing to a step of one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, given_names, gradients, numerical_gradient, with_shapes

Arrays = Mapping[str, np.ndarray]


def check_in_single_precision(
    model: onnx.ModelProto,
    inputs: Arrays,
    *,
    wrt: Sequence[str] | None = None,
    of: Sequence[str] | None = None,
    step: float = 0.5,
    tolerance: float = 1e-4,
    shapes: Sequence[str] = SHAPE_KNOWLEDGE,
    second_order: bool = False,
    seed: int = 0,
) -> None:
    """Assert that the gradients of a float32 model equal differences of what it computes.

    Args:
        model: The forward model, in float32.
        inputs: Where to differentiate.
        wrt: Inputs to differentiate with respect to; all float32 inputs when left out.
        of: Outputs to differentiate; all float32 outputs when left out.
        step: Step of the differences.
        tolerance: Relative and absolute tolerance.
        shapes: What the transform is told of the shapes, one check each.
        second_order: Whether to check the gradient of each gradient graph as well.
        seed: Seed of the cotangents.
    """
    run = evaluator(model)
    generator = np.random.default_rng(seed)
    names = [x for x, a in inputs.items() if a.dtype == np.float32] if wrt is None else list(wrt)
    values = {y: a for y, a in run(inputs).items() if a.dtype == np.float32 and (of is None or y in of)}
    cotangents = {y: generator.standard_normal(a.shape).astype(np.float32) for y, a in values.items()}
    expected = {x: numerical_gradient(run, inputs, x, cotangents, step) for x in names}
    for knowledge in shapes:
        known = with_shapes(model, knowledge)
        actual = gradients(known, inputs, cotangents, names)
        for x in names:
            where = f"{x}, {knowledge} shapes"
            assert actual[x].dtype == np.float32, where
            assert actual[x].shape == inputs[x].shape, where
            np.testing.assert_allclose(actual[x], expected[x], tolerance, tolerance, err_msg=where)
        if second_order:
            transformed = onnx_grad.vjp(known, names, list(cotangents))
            cotangent_names, gradient_names = given_names(transformed)
            check_in_single_precision(
                transformed,
                {**inputs, **{cotangent_names[y]: dy for y, dy in cotangents.items()}},
                wrt=[*names, *cotangent_names.values()],
                of=list(gradient_names.values()),
                step=step,
                tolerance=tolerance,
                shapes=["static"],
                seed=seed + 1,
            )
