"""Marks in a model that was put into training mode: what its normalizations and running statistics are.

A layer in training mode normalizes with the mean and variance of its own input, computed by separate nodes.
Where it is marked, its rule gives the whole derivative by that input at once, that through the statistics
included, which takes half the passes over the data that pulling back through those nodes would.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX

_STATISTICS = METADATA_PREFIX + "batch_statistics"
_UPDATES = METADATA_PREFIX + "updates"


def mark_normalization(node: ir.Node, x: ir.Value) -> None:
    """Note that the mean and variance of the `BatchNormalization` `node` are those of its input.

    Args:
        node: The node in its inference form.
        x: What it normalizes, before any cast of its own.
    """
    mean, variance = (known.operand(node, index) for index in (3, 4))
    note = {
        "operands": [str(value.name) for value in _operands(node)],
        "between": sorted({str(value.name) for value in _between(x, (mean, variance))}),
    }
    node.metadata_props[_STATISTICS] = json.dumps(note)


def normalizes_by_its_input(node: ir.Node) -> bool:
    """Whether a `BatchNormalization` node is marked, and still reads what it did then."""
    note = node.metadata_props.get(_STATISTICS)
    operands = [value.name for value in _operands(node)]
    return note is not None and json.loads(note)["operands"] == operands


def separate(nodes: Iterable[ir.Node], named: Collection[ir.Value]) -> None:
    """Take the marks from layers whose statistics a request names, so that those count on their own.

    Args:
        nodes: A graph, or some nodes, that may be changed.
        named: The values to differentiate with respect to, or to stop at.
    """
    names = {value.name for value in named}
    for node in nodes:
        note = node.metadata_props.get(_STATISTICS)
        if note is not None and not names.isdisjoint(json.loads(note)["between"]):
            del node.metadata_props[_STATISTICS]


def mark_update(nodes: Iterable[ir.Node], statistic: ir.Value) -> None:
    """Note that `nodes` compute the next value of a running `statistic`."""
    for node in nodes:
        node.metadata_props[_UPDATES] = str(statistic.name)


def updates_statistic(node: ir.Node | None) -> bool:
    """Whether `node` computes the next value of a running statistic."""
    return node is not None and _UPDATES in node.metadata_props


def _between(x: ir.Value, results: Iterable[ir.Value]) -> Iterator[ir.Value]:
    """What is computed on the way from `x` to `results`, which are part of it."""
    waiting = [*results]
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value is not x and producer is not None:
            yield value
            waiting.extend(operand for operand in producer.inputs if operand is not None)


def _operands(node: ir.Node) -> list[ir.Value]:
    """The input, and the mean and variance."""
    return [value for value in (node.inputs[0], *node.inputs[3:5]) if value is not None]
