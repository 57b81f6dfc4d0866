"""One step of the standard's optimizers, in standard operators.

What depends on the number of steps T alone is computed in double, as PyTorch does: in single precision,
1 - β^T loses four digits in the first steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir
from onnx.defs import AI_ONNX_PREVIEW_TRAINING_DOMAIN as DOMAIN

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import ModelError

Step = Callable[[Builder, ir.Node, ir.Value, ir.Value, Sequence[ir.Value]], Sequence[ir.Value]]


def optimizer_step(op: Builder, node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """What an optimizer node gives: the new tensors, then for each kind of state the new states.

    Each comes with the operand that it replaces, whose shape and type it has.

    Args:
        op: Builds the nodes.
        node: A node `Adam`, `Adagrad` or `Momentum`.

    Raises:
        ModelError: Its inputs are not as many as there have to be for each tensor.
    """
    step, kinds = OPTIMIZERS[node.op_type]
    count, rest = divmod(len(node.inputs) - 2, len(kinds))
    if rest or count < 1:
        raise ModelError(
            f"{node.op_type} node '{node.name}' has {len(node.inputs)} inputs; after R and T, there have "
            f"to be as many for each of: {', '.join(kinds)}"
        )
    rate, steps = (_scalar(op, known.operand(node, index)) for index in (0, 1))
    operands = [known.operand(node, 2 + index) for index in range(count * len(kinds))]
    results = [step(op, node, rate, steps, operands[index::count]) for index in range(count)]
    likes = [operands[kind * count : (kind + 1) * count] for kind in (0, *range(2, len(kinds)))]
    made = [result for kind in zip(*results, strict=True) for result in kind]
    return list(zip(made, (like for kind in likes for like in kind), strict=True))


def _adam(
    op: Builder, node: ir.Node, rate: ir.Value, steps: ir.Value, operands: Sequence[ir.Value]
) -> Sequence[ir.Value]:
    """x ← (1 - λ') (x - r √(1 - β^T) / (1 - α^T) · v / (√h + ε)), without the correction at T = 0."""
    x, gradient, v, h = operands
    alpha, beta = _attribute(node, "alpha"), _attribute(node, "beta")
    g = _regularized(op, node, x, gradient)
    v_new = op.Add(op.Mul(v, alpha), op.Mul(g, 1.0 - alpha))
    h_new = op.Add(op.Mul(h, beta), op.Mul(op.Mul(g, g), 1.0 - beta))
    # At T = 0 the correction is 0 / 0, which would reach the derivative of what does not use it.
    number = op.Cast(op.Max(steps, 1), to=ir.DataType.DOUBLE)
    power = {base: op.Pow(op.constant(base, ir.DataType.DOUBLE), number) for base in (alpha, beta)}
    correction = op.Div(op.Sqrt(op.Sub(1.0, power[beta])), op.Sub(1.0, power[alpha]))
    wide = op.Cast(rate, to=ir.DataType.DOUBLE)
    adjusted = op.CastLike(op.Where(op.Greater(steps, 0), op.Mul(wide, correction), wide), x)
    direction = op.Div(v_new, op.Add(op.Sqrt(h_new), _attribute(node, "epsilon")))
    x_new = op.Sub(x, op.Mul(adjusted, direction))
    decay = _attribute(node, "norm_coefficient_post")
    return (op.Mul(x_new, 1.0 - decay) if decay else x_new), v_new, h_new


def _adagrad(
    op: Builder, node: ir.Node, rate: ir.Value, steps: ir.Value, operands: Sequence[ir.Value]
) -> Sequence[ir.Value]:
    """x ← x - r / (1 + T · decay) · g / (√h + ε), with h ← h + g²."""
    x, gradient, h = operands
    g = _regularized(op, node, x, gradient)
    h_new = op.Add(h, op.Mul(g, g))
    wide, number = (op.Cast(value, to=ir.DataType.DOUBLE) for value in (rate, steps))
    decay = _attribute(node, "decay_factor")
    decayed = op.CastLike(op.Div(wide, op.Add(op.Mul(number, decay), 1.0)) if decay else rate, x)
    direction = op.Div(g, op.Add(op.Sqrt(h_new), _attribute(node, "epsilon")))
    return op.Sub(x, op.Mul(decayed, direction)), h_new


def _momentum(
    op: Builder, node: ir.Node, rate: ir.Value, steps: ir.Value, operands: Sequence[ir.Value]
) -> Sequence[ir.Value]:
    """x ← x - r v, or x - r (g + α v) in Nesterov's mode, with v ← α v + β g, where β is 1 at T = 0."""
    x, gradient, v = operands
    alpha, beta = _attribute(node, "alpha"), _attribute(node, "beta")
    mode = node.attributes.get_string("mode")
    if mode not in ("standard", "nesterov"):
        raise ModelError(f"Momentum node '{node.name}' has mode '{mode}'; it is 'standard' or 'nesterov'")
    g = _regularized(op, node, x, gradient)
    scale = op.Where(op.Greater(steps, 0), op.scalar_like(beta, x), op.scalar_like(1.0, x))
    v_new = op.Add(op.Mul(v, alpha), g if beta == 1.0 else op.Mul(g, scale))
    direction = op.Add(g, op.Mul(v_new, alpha)) if mode == "nesterov" else v_new
    return op.Sub(x, op.Mul(op.CastLike(rate, x), direction)), v_new


# What one step does to a tensor, and the inputs for each tensor; the outputs lack the gradient.
OPTIMIZERS: dict[str, tuple[Step, tuple[str, ...]]] = {
    "Adam": (_adam, ("tensor", "gradient", "mean of the gradient", "mean of its square")),
    "Adagrad": (_adagrad, ("tensor", "gradient", "sum of its square")),
    "Momentum": (_momentum, ("tensor", "gradient", "momentum")),
}


def _regularized(op: Builder, node: ir.Node, x: ir.Value, gradient: ir.Value) -> ir.Value:
    """G + λ X: the gradient with that of ½ λ ‖X‖² added."""
    coefficient = _attribute(node, "norm_coefficient")
    return op.Add(gradient, op.Mul(x, coefficient)) if coefficient else gradient


def _scalar(op: Builder, value: ir.Value) -> ir.Value:
    """A rate or a number of steps as a scalar: exporters write some as vectors of length one."""
    return value if known.rank(value) == 0 else op.Reshape(value, op.constant([], ir.DataType.INT64))


def _attribute(node: ir.Node, name: str) -> float:
    """The attribute, or its default in the specification."""
    default = onnx.defs.get_schema(node.op_type, DOMAIN).attributes[name].default_value
    return float(node.attributes.get_float(name, default.f))
