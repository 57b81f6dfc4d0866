"""What the transforms share: the way from a model and the names in a request to a path, and back."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir

import onnx_grad.rules  # noqa: F401  (fills the table)
from onnx_grad import tidy
from onnx_grad.batch_statistics import separate
from onnx_grad.builder import Builder, taken_names
from onnx_grad.errors import NotDifferentiableError, UnknownNameError, UnsupportedOpError
from onnx_grad.lowering import lower_operators
from onnx_grad.path import Path
from onnx_grad.prepare import Forward, Model
from onnx_grad.prepare.lift import OLDEST_OPSET
from onnx_grad.prepare.sequences import handles_sequences
from onnx_grad.prepare.weights import heavy
from onnx_grad.registry import Quantization, State
from onnx_grad.saving import save
from onnx_grad.selection import Names, Selection, select

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """A transform makes many objects that all stay: looking for garbage among them takes a quarter longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def deliver(
    forward: Forward, given: Model, metadata: Mapping[str, Mapping[str, Any]], save_as: PathLike | None
) -> onnx.ModelProto | ir.Model:
    """The changed model of `forward`, of the kind that was `given`, and written to `save_as` if it is named.

    Args:
        forward: What a transform has changed.
        given: What the caller gave.
        metadata: What to note in the model, by key.
        save_as: Where to write it as well.
    """
    light = tidy.finish(forward, metadata)
    if isinstance(given, ir.Model) or save_as is not None:
        tidy.annotate(forward.model, light.proto)
    if save_as is not None:
        save(forward.model, save_as)
    return forward.model if isinstance(given, ir.Model) else heavy(light)


def trace(
    forward: Forward, wrt: Names, of: Names, stop: Names, quantization: Quantization | None = None
) -> tuple[Forward, Selection, Path]:
    """Find the path from `wrt` to `of`, expanding the operators on it that have no rule of their own.

    Raises:
        UnsupportedOpError: Nodes on the path cannot be differentiated.
    """
    forward, selection, path, _ = expand_path(forward, wrt, of, stop, quantization)
    blocked = path.blocked()
    if blocked:
        lines = [f"  node '{step.node.name}' ({step.node.op_type}): {reason}" for step, reason in blocked]
        raise UnsupportedOpError(
            f"{len(blocked)} node(s) between wrt and of cannot be differentiated:\n" + "\n".join(lines)
        )
    return forward, selection, path


def expand_path(
    forward: Forward, wrt: Names, of: Names, stop: Names, quantization: Quantization | None = None
) -> tuple[Forward, Selection, Path, set[str]]:
    """The path from `wrt` to `of` with all its functions expanded, and the operators that were.

    The standard's training operators are lowered wherever they are: what a `Gradient` depends on does not
    show in what it reads. Nodes on the path may still be blocked.
    """
    forward, lowered = lower_operators(forward)
    if lowered:
        forward = forward.inferred()
    expanded = set(lowered.values())
    while True:
        graph = forward.model.graph
        try:
            selection = select(graph, wrt, of, stop)
        except UnknownNameError:
            if not forward.model.functions:
                raise
            # The name may be of a tensor inside a function.
            forward = forward.without_functions()
            continue
        separate(graph, [*selection.wrt, *selection.stop])
        functions = {(domain, name) for domain, name, _ in forward.model.functions}
        path = Path(graph, selection.wrt, selection.of, selection.stop, quantization, functions)
        nodes = [s.node for s in path.all_steps() if s.entry.state is State.EXPANDED]
        if not nodes and any(handles_sequences(s.node) for s in path.all_steps()):
            over_tensors = forward.over_tensors(path.is_active)
            if over_tensors is not None:
                forward = over_tensors
                continue
        if not nodes:
            return forward, selection, path, expanded
        expanded.update(node.op_type for node in nodes)
        forward = forward.expanded({str(node.name) for node in nodes})


def requested(selection: Selection, path: Path) -> list[ir.Value]:
    """The values in `wrt`; of a model's parameters, those that matter for `of`."""
    if not selection.optional:
        return selection.wrt
    parameters = [x for x in selection.wrt if path.reaches(x)]
    if not parameters:
        raise NotDifferentiableError(
            "wrt: no parameter of the model has a differentiable path to of; name other tensors"
        )
    return parameters


def new_input(op: Builder, graph: ir.Graph, like: ir.Value, suffix: str) -> ir.Value:
    """A new input `<like>_<suffix>` of `graph`, of the shape and dtype of `like`."""
    if like.dtype is None:
        raise NotDifferentiableError(
            f"the type of '{like.name}' is unknown, so that there can be no input for its {_ROLES[suffix]}; "
            "declare the type in the model's value_info"
        )
    name = op.unique_name(f"{like.name}_{suffix}")
    value = ir.Value(name=name, shape=like.shape, type=ir.TensorType(like.dtype))
    graph.inputs.append(value)
    return value


_ROLES = {"grad": "cotangent", "tangent": "tangent"}


def builder(graph: ir.Graph, pushes: bool = False) -> Builder:
    """What records new nodes of `graph`; with `pushes`, to push tangents forward."""
    return Builder(graph.opset_imports.setdefault("", OLDEST_OPSET), taken_names(graph), pushes)
