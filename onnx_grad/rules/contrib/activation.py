"""The activation that a fused operator applies last, named in an attribute.

A rule of the standard operator then reads the result where it can, which the fused node gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder

Write = Callable[[Builder, ir.Value, Sequence[float]], ir.Value]

# By the name of the activation: how many parameters it takes, and what it computes. `FusedGemm` has the
# parameters in attributes of their own, alpha, beta and gamma; `FusedConv` in a list.
_ACTIVATIONS: dict[str, tuple[str, Write]] = {
    "": ("", lambda op, x, p: x),
    "Celu": ("alpha", lambda op, x, p: op.Celu(x, alpha=p[0])),
    "Clip": ("alpha beta", lambda op, x, p: op.Clip(x, p[0], p[1])),
    "Elu": ("alpha", lambda op, x, p: op.Elu(x, alpha=p[0])),
    "HardSigmoid": ("alpha beta", lambda op, x, p: op.HardSigmoid(x, alpha=p[0], beta=p[1])),
    "HardSwish": ("", lambda op, x, p: op.HardSwish(x)),
    "LeakyRelu": ("alpha", lambda op, x, p: op.LeakyRelu(x, alpha=p[0])),
    "ParametricSoftplus": ("alpha beta", lambda op, x, p: op.Softplus(x * p[1]) * p[0]),
    "Relu": ("", lambda op, x, p: op.Relu(x)),
    "ScaledTanh": ("alpha beta", lambda op, x, p: op.Tanh(x * p[1]) * p[0]),
    "Selu": ("alpha gamma", lambda op, x, p: op.Selu(x, alpha=p[0], gamma=p[1])),
    "Sigmoid": ("", lambda op, x, p: op.Sigmoid(x)),
    "Softplus": ("", lambda op, x, p: op.Softplus(x)),
    "Softsign": ("", lambda op, x, p: op.Softsign(x)),
    "Tanh": ("", lambda op, x, p: op.Tanh(x)),
    "ThresholdedRelu": ("alpha", lambda op, x, p: op.ThresholdedRelu(x, alpha=p[0])),
}


def activated(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """The activation of the fused `node`, applied to `x`."""
    _, write = _ACTIVATIONS[_name(node)]
    return write(op, x, _parameters(node) or ())


def undefined_activation(node: ir.Node) -> str | None:
    """Why the activation of a fused node is not defined, if it is not."""
    if _name(node) not in _ACTIVATIONS:
        return (
            f"it applies the activation '{_name(node)}', which is none of "
            f"{', '.join(filter(None, _ACTIVATIONS))}; differentiate the model as it was before ONNX Runtime "
            "optimized it"
        )
    if _parameters(node) is None:
        wanted = _ACTIVATIONS[_name(node)][0]
        return (
            f"its activation {_name(node)} lacks the parameters {wanted}, for which no defaults are defined; "
            "set them on the node"
        )
    return None


def _name(node: ir.Node) -> str:
    return node.attributes.get_string("activation", "")


def _parameters(node: ir.Node) -> list[float] | None:
    """The parameters of the activation, `None` where some are missing."""
    wanted = _ACTIVATIONS[_name(node)][0].split()
    listed = node.attributes.get_floats("activation_params", ())
    named = [f"activation_{name}" for name in wanted]
    given = [node.attributes.get_float(name) for name in named if name in node.attributes] or list(listed)
    return given if len(given) >= len(wanted) else None
