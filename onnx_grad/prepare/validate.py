"""Is the input model a valid one? What can be mended without guessing is mended, the rest is said."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx

from onnx_grad.errors import ModelError

NEWEST_OPSET = onnx.defs.onnx_opset_version()


def validate(proto: onnx.ModelProto) -> None:
    """Check `proto` with onnx's checker, after sorting its nodes and giving every node a unique name.

    Raises:
        ModelError: What is wrong, and where.
    """
    _check_opset(proto)
    if not proto.graph.name:
        proto.graph.name = "graph"
    _check_wiring(proto.graph)
    name_nodes(proto.graph)
    if not _passes_checker(proto):
        try:
            onnx.checker.check_model(_with_every_shape(proto))
        except onnx.checker.ValidationError as error:
            raise ModelError(f"the model is not valid ONNX: {str(error).strip()}") from error


def _passes_checker(proto: onnx.ModelProto) -> bool:
    """Whether it passes as it stands, as most models do."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError:
        return False
    return True


# The opset from which on the checker takes an operator that ONNX Runtime also runs before.
_KNOWN_SINCE = {
    "GroupNormalization": 21,
    "LayerNormalization": 17,
    "SimplifiedLayerNormalization": NEWEST_OPSET + 1,
}


def _with_every_shape(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker, which insists on shapes of inputs and outputs where ONNX Runtime does not.

    It also rejects GroupNormalization before opset 21, which is deprecated but defined and still run, and
    operators that ONNX Runtime adds to the default domain: they get a domain that the checker leaves alone.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = opset_of(proto) or 0
    unknown = {op_type for op_type, known_since in _KNOWN_SINCE.items() if opset < known_since}
    copy.opset_import.add(domain="unchecked", version=1)
    for node in all_nodes(copy.graph):
        if node.op_type in unknown and not node.domain:
            node.domain = "unchecked"
    for value in (*copy.graph.input, *copy.graph.output):
        if not value.HasField("type"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return copy


def opset_of(proto: onnx.ModelProto | onnx.FunctionProto) -> int | None:
    """The version of the default domain that the model or function imports."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)


def _check_opset(proto: onnx.ModelProto) -> None:
    version = opset_of(proto)
    if version is not None and version > NEWEST_OPSET:
        raise ModelError(
            f"the model uses opset {version}, and the installed onnx knows opsets up to {NEWEST_OPSET}; "
            "upgrade the onnx package"
        )


def _check_wiring(graph: onnx.GraphProto) -> None:
    """Sort the nodes topologically where they are not; name a cycle or an input that nothing makes."""
    defined = {value.name for value in (*graph.input, *graph.initializer)}
    if all(_defines(node, defined) for node in graph.node):
        return
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    defined = {value.name for value in (*graph.input, *graph.initializer)}
    needs = []
    for node in graph.node:
        wanted = [name for name in _reads(node) if name and name not in defined]
        for name in wanted:
            if name not in producers:
                raise ModelError(
                    f"node '{node.name or node.op_type}' ({node.op_type}) reads '{name}', "
                    "which is no graph input, no initializer and no other node's output"
                )
        needs.append({producers[name] for name in wanted})
    order = _topological_order(needs)
    if len(order) < len(needs):
        stuck = sorted(set(range(len(needs))) - set(order))
        names = ", ".join(f"'{graph.node[i].name or graph.node[i].op_type}'" for i in _cycle(needs, stuck))
        raise ModelError(f"the graph is cyclic: nodes {names} wait for one another")
    nodes = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _defines(node: onnx.NodeProto, defined: set[str]) -> bool:
    """Whether all that `node` reads is defined already; its outputs are defined from then on."""
    ready = all(not name or name in defined for name in _reads(node))
    defined.update(node.output)
    return ready


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names a node reads, with those that its subgraphs capture from outside."""
    yield from node.input
    for graph in _bodies(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            yield from (name for name in _reads(inner) if name not in own)
            own.update(inner.output)


def _topological_order(needs: list[set[int]]) -> list[int]:
    """Kahn's algorithm, keeping the given order where it is free; nodes on cycles are left out."""
    waiting = [len(need) for need in needs]
    users: list[list[int]] = [[] for _ in needs]
    for index, need in enumerate(needs):
        for other in need:
            users[other].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    for index in ready:
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    return ready


def _cycle(needs: list[set[int]], stuck: list[int]) -> list[int]:
    """One cycle among the nodes that no topological order reaches."""
    remaining = set(stuck)
    walked: list[int] = []
    current = stuck[0]
    while current not in walked:
        walked.append(current)
        current = min(needs[current] & remaining)
    return walked[walked.index(current) :][::-1]


def name_nodes(graph: onnx.GraphProto) -> None:
    """A node without a name is called after its first output; a name used twice gets a suffix.

    Names are unique in the model: nodes of bodies are named too.
    """
    taken: set[str] = set()
    for node in all_nodes(graph):
        stem = node.name or next((name for name in node.output if name), node.op_type)
        name, count = stem, 0
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        if node.name != name:
            node.name = name


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, each followed by those of its bodies."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from all_nodes(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    if not _may_hold_bodies(node.op_type, node.domain):
        return []
    return [
        body
        for attribute in node.attribute
        for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs)
    ]


@functools.cache
def _may_hold_bodies(op_type: str, domain: str) -> bool:
    """Whether an operator may have graphs as attributes: it is quicker to ask this than to look at nodes."""
    if not onnx.defs.has(op_type, domain):
        return True
    attributes = onnx.defs.get_schema(op_type, domain=domain).attributes.values()
    return any(attribute.type in _GRAPHS for attribute in attributes)


_GRAPHS = (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)


def operators(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    """Domain and type of every operator of a graph and its bodies."""
    return {(node.domain, node.op_type) for node in all_nodes(graph)}
