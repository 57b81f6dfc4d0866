"""The standard's `Gradient`: what a node asks for, and the nodes that compute it.

The attributes `xs`, `zs` and `y` name tensors, and so a function from the former to the latter: the nodes
between them. The inputs of the node are where to differentiate it. Where they are the very tensors that are
named, the nodes between serve as they are; where they are others, what depends on them is computed again.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.backward import pull_back
from onnx_grad.builder import Builder
from onnx_grad.errors import (
    ModelError,
    NoPathWarning,
    NotDifferentiableError,
    UnknownNameError,
    UnsupportedOpError,
    callers_level,
)
from onnx_grad.liveness import read_values
from onnx_grad.lowering.scopes import nodes_below
from onnx_grad.lowering.substitution import substitute
from onnx_grad.path import Path
from onnx_grad.registry import OperatorId


@dataclass(frozen=True)
class Request:
    """What a `Gradient` node asks for.

    Attributes:
        node: The node.
        y: The tensor to differentiate.
        given: For each tensor that it names, the value that is to stand in its place: itself, or another.
        wanted: For each output that is there, its position and the tensor to differentiate with respect to.
    """

    node: ir.Node
    y: ir.Value
    given: dict[ir.Value, ir.Value]
    wanted: dict[int, ir.Value]

    @classmethod
    def of_node(cls, node: ir.Node, visible: Mapping[str, ir.Value]) -> Request:
        """Look up what `node` names among the tensors that it sees.

        Raises:
            UnknownNameError: It sees no tensor of that name.
            ModelError: Its inputs and outputs do not fit the names.
            NotDifferentiableError: A tensor to differentiate is not of a float type.
        """
        xs, zs = (list(node.attributes.get_strings(name, ())) for name in ("xs", "zs"))
        named = [_find(node, "xs", name, visible) for name in xs]
        named += [_find(node, "zs", name, visible) for name in zs]
        y = _find(node, "y", node.attributes.get_string("y", ""), visible)
        if len(node.inputs) != len(named) or len(set(named)) != len(named):
            raise ModelError(
                f"{label(node)} has {len(node.inputs)} input(s) for the {len(named)} tensor(s) named in xs "
                f"and zs ({', '.join((*xs, *zs))}); there has to be one for each, and each is named once"
            )
        if len(node.outputs) > len(xs):
            raise ModelError(f"{label(node)} has {len(node.outputs)} outputs for {len(xs)} tensors in xs")
        given = {value: known.operand(node, index) for index, value in enumerate(named)}
        wanted = {index: named[index] for index, output in enumerate(node.outputs) if output.name}
        request = cls(node, y, given, wanted)
        request._check_types()
        return request

    def nodes(self) -> list[ir.Node]:
        """The nodes that y depends on, as far as the named tensors, in topological order."""
        return nodes_below([self.y], self.given)

    def check_independent(self) -> None:
        """See that no named tensor is computed from another, which the specification rules out.

        Raises:
            ModelError: One is.
        """
        for value in self.given:
            read = {operand for node in nodes_below([value]) for operand in read_values(node)}
            for other in self.given:
                if other in read and other is not value:
                    raise ModelError(
                        f"{label(self.node)}: '{value.name}' is computed from '{other.name}', and tensors in "
                        "xs and zs have to be independent of each other; leave one of them out (a tensor "
                        "that is not named keeps its value)"
                    )

    def _check_types(self) -> None:
        for value in (*self.wanted.values(), self.y):
            is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
            if not is_tensor or not known.may_be_float(value):
                raise NotDifferentiableError(
                    f"{label(self.node)}: '{value.name}' is of type {value.type}, and only float tensors "
                    "have derivatives; list it in zs"
                    if value is not self.y
                    else f"{label(self.node)}: y, '{value.name}', is of type {value.type}, and only float "
                    "tensors have derivatives"
                )
        for value, given in self.given.items():
            if None not in (value.dtype, given.dtype) and value.dtype != given.dtype:
                raise ModelError(
                    f"{label(self.node)}: '{given.name}' is to stand for '{value.name}', which is "
                    f"{value.dtype}, and is {given.dtype}; convert it with Cast"
                )


def label(node: ir.Node) -> str:
    """How messages call a node."""
    return f"{node.op_type} node '{node.name}'"


def path_between(
    request: Request, nodes: Sequence[ir.Node], opset: int, functions: Container[OperatorId]
) -> Path:
    """The path through `nodes` from the tensors to differentiate with respect to, to y."""
    return Path(_view(nodes, opset), request.wanted.values(), [request.y], functions=functions)


def blocked_lines(path: Path) -> list[str]:
    """A line for each node on `path` that has no derivative here."""
    return [f"  node '{step.node.name}' ({step.node.op_type}): {reason}" for step, reason in path.blocked()]


def blocked_error(lines: Collection[str]) -> UnsupportedOpError:
    """The error that says them."""
    return UnsupportedOpError(
        f"{len(lines)} node(s) between xs and y of a Gradient cannot be differentiated:\n" + "\n".join(lines)
    )


def differentiate(op: Builder, request: Request, nodes: Sequence[ir.Node]) -> dict[int, ir.Value]:
    """Build ∂y/∂x for each x that is wanted, at the values that are given; of a tensor y, ∂(Σ y)/∂x.

    Args:
        op: Builds the nodes.
        request: What is wanted.
        nodes: The nodes between the named tensors and y.

    Returns:
        The gradient for the position of each output that is wanted.
    """
    # A value of its own for each that is given: one may stand for two tensors, or be read on the way as well.
    replaced = {
        value: _handed_through(op, given) for value, given in request.given.items() if given is not value
    }
    nodes, counterparts = substitute(op, nodes, replaced)
    copies = [copy for copy in nodes if copy.graph is None]
    op.nodes += copies
    computed_again = ir.Graph([], [], nodes=copies, opset_imports={"": op.opset})
    y = counterparts.get(request.y, request.y)
    wrt = {index: counterparts.get(x, x) for index, x in request.wanted.items()}
    view = _view(nodes, op.opset)
    path = Path(view, wrt.values(), [y])
    if blocked := blocked_lines(path):
        raise blocked_error(blocked)
    pulled = pull_back(op, path, view, [(y, _ones(op, y))])
    computed_again.remove(copies)
    back = {handed: request.given[value] for value, handed in replaced.items()}
    results = {}
    for index, x in wrt.items():
        dx = pulled.get(x)
        results[index] = _zeros(op, request, index) if dx is None else back.get(dx, dx)
    for handed, given in back.items():
        handed.replace_all_uses_with(given)
    return results


def _view(nodes: Sequence[ir.Node], opset: int) -> ir.GraphView:
    return ir.GraphView([], [], nodes=nodes, opset_imports={"": opset})


def _find(node: ir.Node, attribute: str, name: str, visible: Mapping[str, ir.Value]) -> ir.Value:
    if name not in visible:
        raise UnknownNameError.near(f"{label(node)}, attribute {attribute}", name, visible)
    return visible[name]


def _handed_through(op: Builder, given: ir.Value) -> ir.Value:
    handed: ir.Value = op.node("Identity", given, shared=False)
    handed.shape, handed.type = given.shape, given.type
    return handed


def _ones(op: Builder, y: ir.Value) -> ir.Value:
    """The cotangent of y: ones of its shape."""
    with op.serving(str(y.name)):
        one = op.scalar_like(1.0, y)
        return one if known.static_shape(y) == () else op.Expand(one, op.shape(y))


def _zeros(op: Builder, request: Request, index: int) -> ir.Value:
    x = request.wanted[index]
    warnings.warn(
        f"{label(request.node)}: no differentiable path leads from '{x.name}' to '{request.y.name}': its "
        "gradient is zeros",
        NoPathWarning,
        stacklevel=callers_level(),
    )
    with op.serving(str(x.name)):
        return op.zeros_like(request.given[x])
