"""The activation functions that RNN, GRU and LSTM name in their attributes, with their derivatives.

They are written with operators that have kernels in double precision as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.masking import as_number
from onnx_grad.rules.recurrence import direction_count

Thunk = Callable[[], ir.Value]


@dataclass(frozen=True)
class Activation:
    """y = f(min(max(x, −clip), clip)).

    Attributes:
        name: The name of f in lower case.
        alpha: Its parameter α; 0 where it has none.
        beta: Its parameter β; 0 where it has none.
        clip: The bound of its argument, or `None`.
    """

    name: str
    alpha: float
    beta: float
    clip: float | None

    def __call__(self, op: Builder, x: ir.Value) -> ir.Value:
        """Build y."""
        return _FUNCTIONS[self.name](op, self._clipped(op, x), self.alpha, self.beta)

    def slope(self, op: Builder, x: ir.Value | Thunk, y: ir.Value) -> ir.Value:
        """Build dy/dx, of the shape of y, given y and x; a thunk of x is called where y is not enough."""

        def argument() -> ir.Value:
            return x() if callable(x) else x

        slope = _SLOPES[self.name](op, lambda: self._clipped(op, argument()), y, self.alpha, self.beta)
        if self.clip is None:
            return slope
        return slope * as_number(op, op.LessOrEqual(op.Abs(argument()), self.clip), y)

    def _clipped(self, op: Builder, x: ir.Value) -> ir.Value:
        return x if self.clip is None else op.Clip(x, -self.clip, self.clip)


def activations(node: ir.Node, defaults: Sequence[str]) -> list[list[Activation]]:
    """The activation functions of each direction.

    `activation_alpha` and `activation_beta` hold values for those functions alone that have an α or β, in
    order, which is how ONNX Runtime reads them.

    Args:
        node: A recurrent node.
        defaults: The names of the functions of one direction where none are given.
    """
    clip = node.attributes.get_float("clip", 0.0) or None
    functions = [Activation(*function, clip) for function in _given(node, defaults)]
    size = len(defaults)
    return [functions[i : i + size] for i in range(0, len(functions), size)]


def undefined_activation(*defaults: str) -> Callable[[ir.Node], str | None]:
    """What refuses nodes whose activation functions the specification does not define.

    Args:
        *defaults: The names of the functions of one direction where none are given.
    """
    return partial(_undefined, defaults)


def _undefined(defaults: Sequence[str], node: ir.Node) -> str | None:
    names = _names(node, defaults)
    expected = len(defaults) * direction_count(node)
    if len(names) != expected:
        return f"it names {len(names)} activation functions ({', '.join(names)}) where it has {expected}"
    for name in names:
        if name not in _FUNCTIONS:
            return f"its activation function '{name}' is none of the specification's"
    for name, alpha, beta in _given(node, defaults):
        for attribute, parameter in (("activation_alpha", alpha), ("activation_beta", beta)):
            if math.isnan(parameter):
                return (
                    f"{attribute} has no value for its activation function '{name}', whose default is not "
                    "defined (ONNX Runtime takes 0); add the value to the attribute"
                )
    return None


def _names(node: ir.Node, defaults: Sequence[str]) -> list[str]:
    names = node.attributes.get_strings("activations", ())
    return [name.lower() for name in names or [*defaults] * direction_count(node)]


def _given(node: ir.Node, defaults: Sequence[str]) -> list[tuple[str, float, float]]:
    """Name, α and β of each function."""
    alphas = iter(node.attributes.get_floats("activation_alpha", ()))
    betas = iter(node.attributes.get_floats("activation_beta", ()))
    return [
        (
            name,
            next(alphas, _ALPHA[name]) if name in _ALPHA else 0.0,
            next(betas, _BETA[name]) if name in _BETA else 0.0,
        )
        for name in _names(node, defaults)
    ]


# The functions that have an α, or a β, with its default: NaN where none is defined. The specification refers
# to operators, of which Affine and ScaledTanh are gone, and ONNX Runtime does not take ThresholdedRelu's.
_ALPHA = {
    "affine": math.nan,
    "elu": 1.0,
    "hardsigmoid": 0.20000000298023224,
    "leakyrelu": 0.009999999776482582,
    "scaledtanh": math.nan,
    "thresholdedrelu": math.nan,
}
_BETA = {"affine": math.nan, "hardsigmoid": 0.5, "scaledtanh": math.nan}

_Function = Callable[[Builder, ir.Value, float, float], ir.Value]
_Slope = Callable[[Builder, Thunk, ir.Value, float, float], ir.Value]

_FUNCTIONS: dict[str, _Function] = {
    "affine": lambda op, x, a, b: x * a + b,
    "elu": lambda op, x, a, b: op.Relu(x) + (_decay(op, x) - 1.0) * a,
    "hardsigmoid": lambda op, x, a, b: op.Clip(x * a + b, 0.0, 1.0),
    "leakyrelu": lambda op, x, a, b: op.Relu(x) + op.Min(x, 0.0) * a,
    "relu": lambda op, x, a, b: op.Relu(x),
    "scaledtanh": lambda op, x, a, b: op.Tanh(x * b) * a,
    "sigmoid": lambda op, x, a, b: op.Sigmoid(x),
    "softplus": lambda op, x, a, b: op.Relu(x) + op.Log(op.Exp(-op.Abs(x)) + 1.0),
    "softsign": lambda op, x, a, b: x / (op.Abs(x) + 1.0),
    "tanh": lambda op, x, a, b: op.Tanh(x),
    "thresholdedrelu": lambda op, x, a, b: x * as_number(op, op.GreaterOrEqual(x, a), x),
}

_SLOPES: dict[str, _Slope] = {
    "affine": lambda op, x, y, a, b: op.Expand(op.scalar_like(a, y), op.shape(y)),
    "elu": lambda op, x, y, a, b: _decay(op, x()) * a + _where_positive(op, x()) * (1.0 - a),
    "hardsigmoid": lambda op, x, y, a, b: as_number(op, op.And(op.Greater(y, 0.0), op.Less(y, 1.0)), y) * a,
    "leakyrelu": lambda op, x, y, a, b: _where_positive(op, y if a >= 0 else x()) * (1.0 - a) + a,
    "relu": lambda op, x, y, a, b: _where_positive(op, y),
    "scaledtanh": lambda op, x, y, a, b: (1.0 - _square(op.Tanh(x() * b))) * (a * b),
    "sigmoid": lambda op, x, y, a, b: y * (1.0 - y),
    "softplus": lambda op, x, y, a, b: op.Sigmoid(x()),
    "softsign": lambda op, x, y, a, b: _square(1.0 - op.Abs(y)),
    "tanh": lambda op, x, y, a, b: 1.0 - y * y,
    "thresholdedrelu": lambda op, x, y, a, b: as_number(op, op.GreaterOrEqual(x(), a), y),
}


def _decay(op: Builder, x: ir.Value) -> ir.Value:
    """eˣ where x < 0, else 1."""
    return op.Exp(op.Min(x, 0.0))


def _where_positive(op: Builder, value: ir.Value) -> ir.Value:
    """1 where `value` > 0, else 0."""
    return as_number(op, op.Greater(value, 0.0), value)


def _square(value: ir.Value) -> ir.Value:
    return value * value
