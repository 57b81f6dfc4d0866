"""The transform `training_mode`: which layers change, and what the model gets for it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batch_statistics import normalizes_by_its_input
from onnx_grad.builder import METADATA_PREFIX, Builder
from onnx_grad.errors import (
    InputError,
    ModelError,
    NoLayerWarning,
    UnknownNameError,
    UnsupportedOpError,
    callers_level,
)
from onnx_grad.layers.batch_normalization import Updates, use_batch_statistics
from onnx_grad.layers.dropout import activate_dropout
from onnx_grad.prepare import Model, prepare
from onnx_grad.recording import recording
from onnx_grad.saving import check_target
from onnx_grad.transforms.tracing import PathLike, builder, deliver

# Keys of the model's metadata.
_NOTES = ("training_layers", "seed", "updated_statistics")

Patterns = str | Sequence[str] | None


@overload
def training_mode(
    model: ir.Model,
    *,
    dropout: bool | float = True,
    batch_norm: bool = True,
    layers: Patterns = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def training_mode(
    model: PathLike | onnx.ModelProto,
    *,
    dropout: bool | float = True,
    batch_norm: bool = True,
    layers: Patterns = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def training_mode(
    model: Model,
    *,
    dropout: bool | float = True,
    batch_norm: bool = True,
    layers: Patterns = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The model with its `Dropout` and `BatchNormalization` as they are in training.

    `Dropout` drops elements at random, with its own ratio. The model gets an input `seed`, an int64 scalar:
    the masks are the same for the same seed, and independent for different ones and between layers.

    `BatchNormalization` normalizes with the mean and variance of the batch. The model gets two more outputs
    for each such layer: what its running mean and variance become, `<running mean>_updated` and
    `<running variance>_updated`. Those are PyTorch's: the running variance is updated with the unbiased
    variance of the batch, whose n elements by channel divide by n − 1 (by 1 where n = 1), where the
    specification's own training form divides by n; the normalization divides by n in both. They count neither
    as outputs to differentiate by default nor, before, as parameters.

    What an exporter has folded into another layer or removed cannot be put into training mode.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed. It is a forward model:
            differentiate the result, not the other way round.
        dropout: Whether to activate `Dropout`; a number in [0, 1) is the ratio for all of them.
        batch_norm: Whether to change `BatchNormalization`.
        layers: Names of the nodes to change, or patterns as of file names, such as `"encoder/*"`; `None` for
            all.
        save_as: Where to write the result as well. Its external weights are shared with the original's.

    Returns:
        A model of the kind that was given (a `ModelProto` for a path), at opset 18 or later. As JSON, its
        metadata `pkg.onnx_grad.training_layers` holds the operator of each layer that was changed,
        `pkg.onnx_grad.seed` the name of the seed, and `pkg.onnx_grad.updated_statistics` the name of the
        output for each running statistic.

    Raises:
        InputError: `dropout` is no probability.
        ModelError: The model is damaged or inconsistent, or already holds gradients.
        UnknownNameError: A name or pattern in `layers` fits no such layer.
        UnsupportedOpError: A layer is inside the body of `If`, `Loop` or `Scan`.
        OutputError: `save_as` cannot be written.

    Warns:
        NoLayerWarning: There is nothing to change.
    """
    ratio = _ratio(dropout)
    if save_as is not None:
        check_target(save_as)
    kinds = {"Dropout": dropout is not False, "BatchNormalization": batch_norm}
    wanted = {kind for kind, is_wanted in kinds.items() if is_wanted}
    forward = prepare(model)
    functions = forward.model.functions.values()
    if any(_is_layer(node, wanted) for function in functions for node in function.all_nodes()):
        forward = forward.without_functions()
    if METADATA_PREFIX + "gradients" in forward.model.metadata_props:
        raise ModelError(
            "the model already holds gradients, which are those of its inference mode; "
            "put the forward model into training mode, and differentiate the result"
        )
    chosen = _chosen(forward.model, wanted, layers)
    if not chosen or (ratio is not None and not any(node.op_type == "Dropout" for node in chosen)):
        _warn(wanted if not chosen else {"Dropout"})
    earlier = {key: _noted(forward.model, key) for key in _NOTES}
    metadata = _put_into_training_mode(forward.model.graph, chosen, ratio, earlier["seed"])
    return deliver(forward, model, {key: earlier[key] | metadata[key] for key in _NOTES}, save_as)


def _noted(model: ir.Model, key: str) -> dict[str, str]:
    """What this transform noted when it changed other layers of the model before."""
    noted: dict[str, str] = json.loads(model.metadata_props.get(METADATA_PREFIX + key, "{}"))
    return noted


def _ratio(dropout: bool | float) -> float | None:
    if isinstance(dropout, bool):
        return None
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"dropout: {dropout} is no ratio; give a number from 0 up to, but not, 1")
    return float(dropout)


def _is_layer(node: ir.Node, wanted: Iterable[str]) -> bool:
    """Whether the transform has something to change about `node`."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in wanted:
        return False
    if node.op_type == "Dropout":
        return True
    # A node in its training form whose running statistics are read is in training mode already.
    updates_itself = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    return not updates_itself and not normalizes_by_its_input(node)


def _chosen(model: ir.Model, wanted: Iterable[str], layers: Patterns) -> list[ir.Node]:
    """The layers to change, in topological order."""
    found = [node for node in model.graph.all_nodes() if _is_layer(node, wanted)]
    if layers is not None:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        names = [str(node.name) for node in found]
        for pattern in patterns:
            if not any(_fits(name, pattern) for name in names):
                raise _unknown(pattern, names)
        found = [node for node in found if any(_fits(str(node.name), pattern) for pattern in patterns)]
    inside = [node for node in found if node.graph is not model.graph]
    if inside:
        lines = [f"  node '{node.name}' ({node.op_type})" for node in inside]
        raise UnsupportedOpError(
            "layers inside the body of an If, Loop or Scan cannot be put into training mode; "
            "name the others with layers=:\n" + "\n".join(lines)
        )
    return found


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _unknown(pattern: str, names: Sequence[str]) -> UnknownNameError:
    if not names:
        return UnknownNameError(f"layers: '{pattern}' fits nothing, as the model has no such layer at all")
    return UnknownNameError.near("layers", pattern, names, "layer")


def _warn(kinds: Iterable[str]) -> None:
    warnings.warn(
        f"the model has no {' or '.join(sorted(kinds))} to put into training mode. Exporters fold "
        "BatchNormalization into the layer before it and leave Dropout out; with PyTorch, export with "
        "optimize=False (dynamo=False: training=TrainingMode.PRESERVE, do_constant_folding=False) and put "
        "the Dropout modules into train() before",
        NoLayerWarning,
        stacklevel=callers_level(),
    )


def _put_into_training_mode(
    graph: ir.Graph, layers: Sequence[ir.Node], ratio: float | None, earlier_seed: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Change `layers`, by the seed that the model may have already; returns what is to be noted in it."""
    op = builder(graph)
    notes = {str(node.name): node.op_type for node in layers}
    updates: Updates = {}
    seed = _seed(op, graph, earlier_seed) if "Dropout" in notes.values() else None
    with recording(op):
        for node in layers:
            before, op.scope = len(op.nodes), str(node.name)
            if node.op_type == "Dropout" and seed is not None:
                results = activate_dropout(op, node, seed, ratio)
            else:
                results = [use_batch_statistics(op, node, updates)]
            _replace(graph, node, op.nodes[before:], results)
    for value in op.initializers:
        if value.uses():
            graph.register_initializer(value)
    seeds = {} if seed is None else {"dropout": str(seed.name)}
    outputs = dict(_give_out(op, graph, updates))
    return {"training_layers": notes, "seed": seeds, "updated_statistics": outputs}


def _seed(op: Builder, graph: ir.Graph, earlier: Mapping[str, str]) -> ir.Value:
    for value in graph.inputs:
        if value.name in earlier.values():
            return value
    seed = ir.Value(name=op.unique_name("seed"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(seed)
    return seed


def _replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node], results: Sequence[ir.Value]) -> None:
    """Let `new` nodes give, under the same names, what `node` did; constants that only it read go with it."""
    operands = [value for value in node.inputs if value is not None]
    graph.insert_before(node, new)
    for output, result in zip(node.outputs, results, strict=False):
        name = output.name
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.shape, result.type, output.name, result.name = output.shape, output.type, None, name
    graph.remove(node, safe=True)
    last = results[0].producer()
    if last is not None:
        last.name = node.name
    for value in operands:
        _remove_unread(graph, value)


def _remove_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Take a constant out of `graph` that nothing reads any more."""
    if value.uses() or value.is_graph_output() or known.constant(value) is None:
        return
    producer = value.producer()
    if producer is not None:
        graph.remove(producer, safe=True)
    else:
        graph.initializers.pop(str(value.name))


def _give_out(op: Builder, graph: ir.Graph, updates: Updates) -> Iterator[tuple[str, str]]:
    """Add the outputs `<statistic>_updated`; returns their names by that of the statistic."""
    for statistic, updated in updates.items():
        updated.name = op.unique_name(f"{statistic.name}_updated")
        updated.shape, updated.type = statistic.shape, statistic.type
        graph.outputs.append(updated)
        yield str(statistic.name), updated.name
