"""Which tensors a request means: `wrt`, `of` and `stop` by name, checked against the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batch_statistics import updates_statistic
from onnx_grad.errors import ModelError, NotDifferentiableError, UnknownNameError

Names: TypeAlias = "str | Sequence[str] | None"

PARAMETERS = "parameters"


@dataclass(frozen=True)
class Selection:
    """The values that a request names.

    Attributes:
        wrt: The values to differentiate with respect to.
        of: The values to differentiate.
        stop: The values that count as constants.
        optional: Whether those in `wrt` that no path leads from are to be left out rather than zero.
    """

    wrt: list[ir.Value]
    of: list[ir.Value]
    stop: list[ir.Value]
    optional: bool


def select(graph: ir.Graph, wrt: Names, of: Names, stop: Names = ()) -> Selection:
    """Look the names up in `graph`.

    Args:
        graph: A forward graph.
        wrt: Names of inputs, initializers or intermediate tensors; `None` for every float input without a
            default, `"parameters"` for every weight.
        of: Names of outputs or intermediate tensors; `None` for every float output.
        stop: Names of tensors to treat as constants.

    Raises:
        UnknownNameError: A name is not in the graph.
        NotDifferentiableError: A named tensor is not of a float type, or there is none to choose from.
    """
    values = _values(graph)
    return Selection(
        wrt=_wrt(graph, values, wrt),
        of=_of(graph, values, of),
        stop=[_find(values, "stop", name) for name in _listed(stop)],
        optional=isinstance(wrt, str) and wrt == PARAMETERS and PARAMETERS not in values,
    )


def parameters(graph: ir.Graph) -> list[ir.Value]:
    """The weights of a model: float initializers of rank one or more.

    Rank-0 initializers are constants of the model's formulas, and the running mean and variance of a
    `BatchNormalization` are statistics; both can be named explicitly.
    """
    return [
        value
        for value in graph.initializers.values()
        if value.dtype in known.FLOAT_TYPES and known.rank(value) != 0 and not _is_statistic(value)
    ]


def _is_statistic(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and all(
        (use.node.op_type == "BatchNormalization" and use.idx in (3, 4)) or updates_statistic(use.node)
        for use in uses
    )


def _wrt(graph: ir.Graph, values: dict[str, ir.Value], wrt: Names) -> list[ir.Value]:
    if wrt is None:
        inputs = [
            value
            for value in graph.inputs
            if not value.is_initializer() and value.dtype in known.FLOAT_TYPES and _is_tensor(value)
        ]
        if not inputs:
            raise NotDifferentiableError(
                "wrt: the model has no float input to differentiate with respect to; "
                f"name a tensor, or '{PARAMETERS}' for its weights"
            )
        return inputs
    if isinstance(wrt, str) and wrt == PARAMETERS and PARAMETERS not in values:
        weights = parameters(graph)
        if not weights:
            raise NotDifferentiableError(
                "wrt: the model has no float initializer of rank one or more that could be a parameter; "
                "name the tensors to differentiate with respect to"
            )
        return weights
    return _differentiable(values, "wrt", wrt)


def _of(graph: ir.Graph, values: dict[str, ir.Value], of: Names) -> list[ir.Value]:
    if of is not None:
        return _differentiable(values, "of", of)
    outputs = [
        v
        for v in graph.outputs
        if known.may_be_float(v) and _is_tensor(v) and not updates_statistic(v.producer())
    ]
    if not outputs:
        raise NotDifferentiableError("of: the model has no float output; name a float tensor inside it")
    return list(dict.fromkeys(outputs))


def _differentiable(values: dict[str, ir.Value], role: str, names: str | Sequence[str]) -> list[ir.Value]:
    found = [_find(values, role, name) for name in _listed(names)]
    if not found:
        raise UnknownNameError(f"{role}: the list of names is empty; name at least one tensor")
    for value in found:
        if not _is_tensor(value):
            raise NotDifferentiableError(
                f"{role}: '{value.name}' is a {value.type}, not a tensor, and has no derivative"
            )
        if not known.may_be_float(value):
            raise NotDifferentiableError(
                f"{role}: '{value.name}' is of type {value.dtype}, and only float tensors have derivatives"
            )
    return found


def _listed(names: Names) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def _find(values: dict[str, ir.Value], role: str, name: str) -> ir.Value:
    if name not in values:
        raise UnknownNameError.near(role, name, values)
    return values[name]


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    produced: Iterable[ir.Value] = (value for node in graph for value in node.outputs)
    named = {
        value.name: value for value in (*graph.inputs, *graph.initializers.values(), *produced) if value.name
    }
    if not named:
        raise ModelError("the model's graph is empty: it has no tensors")
    return named
