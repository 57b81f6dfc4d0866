"""Which weights of a model are trained, and making them inputs of its graph."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

import onnx_ir as ir

from onnx_grad import known, selection
from onnx_grad.errors import InputError, NotDifferentiableError, UnknownNameError
from onnx_grad.path import Path
from onnx_grad.transforms.tracing import builder

Patterns: TypeAlias = "str | Sequence[str] | None"


def listed(patterns: Patterns) -> list[str]:
    """The patterns of a request as a list."""
    if patterns is None:
        return []
    names = [patterns] if isinstance(patterns, str) else list(patterns)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{name!r} is neither the name of a parameter nor a pattern")
    return names


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether `name` is one of `patterns`, or fits one as a file name would."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(role: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """See that each pattern fits a parameter.

    Raises:
        UnknownNameError: One fits none.
    """
    for pattern in patterns:
        if not any(fits(name, [pattern]) for name in names):
            raise UnknownNameError.near(role, pattern, names, "parameter")


def chosen(graph: ir.Graph, own: Container[str], parameters: Patterns, frozen: Patterns) -> list[str]:
    """The names of the parameters to train, in the order of the model.

    Args:
        graph: A forward graph with its loss.
        own: The names of the initializers that are not of the loss.
        parameters: Names or patterns; `None` for every weight.
        frozen: Names or patterns of those that are not trained after all.

    Raises:
        UnknownNameError: A pattern fits nothing.
        NotDifferentiableError: Nothing is left to train.
    """
    weights = [str(value.name) for value in selection.parameters(graph) if value.name in own]
    held = graph.initializers.values()
    floats = [str(value.name) for value in held if value.dtype in known.FLOAT_TYPES and value.name in own]
    wanted, unwanted = listed(parameters), listed(frozen)
    check_patterns("parameters", wanted, floats)
    check_patterns("frozen", unwanted, floats)
    if parameters is None:
        names = weights
    else:
        # A pattern means weights; a name means the very tensor.
        names = [name for name in floats if name in wanted or (name in weights and fits(name, wanted))]
    names = [name for name in names if not fits(name, unwanted)]
    if not names:
        raise NotDifferentiableError(
            "parameters: nothing is left to train: the model has no float initializer of rank one or more, "
            "or all of them are frozen"
        )
    return names


def reaching(path: Path, graph: ir.Graph, names: Iterable[str]) -> list[str]:
    """Those of the named initializers that matter for what is differentiated.

    Raises:
        NotDifferentiableError: None does.
    """
    found = [name for name in names if path.reaches(graph.initializers[name])]
    if not found:
        raise NotDifferentiableError(
            "parameters: no parameter of the model has a differentiable path to the loss"
        )
    return found


def make_inputs(graph: ir.Graph, names: Iterable[str]) -> None:
    """Turn initializers into graph inputs of the same name, shape and type, without a default value."""
    for name in names:
        value = graph.initializers.pop(name)
        if value.shape is None and value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
        value.const_value = None
        if not value.is_graph_input():
            graph.inputs.append(value)


def make_master_inputs(graph: ir.Graph, names: Iterable[str]) -> None:
    """As `make_inputs`; those of half precision become float32, master weights that are rounded when read."""
    names = list(names)
    make_inputs(graph, names)
    wanted = set(names)
    halves = [value for value in graph.inputs if value.name in wanted and value.dtype in known.HALF_TYPES]
    if not halves:
        return
    op = builder(graph)
    for value in halves:
        uses = list(value.uses())
        half = value.dtype
        value.type = ir.TensorType(ir.DataType.FLOAT)
        with op.serving(str(value.name)):
            rounded = op.Cast(value, to=half)
        rounded.shape = value.shape
        for user, index in uses:
            user.replace_input_with(index, rounded)
    graph.insert_before(next(iter(graph)), op.nodes)
