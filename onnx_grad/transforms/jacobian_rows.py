"""Jacobians of a forward graph: by rows or columns, all in one batch, or from one product where it is enough.

A row of ∂y/∂x is the gradient for the cotangent that is one at one element of y, a column the tangent for one
element of x. All rows are the gradients for a batch of cotangents, the identity matrix in the shape of y: the
backward pass is batched, and the forward pass runs once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnx_grad import known, tidy
from onnx_grad.backward import pull_back
from onnx_grad.batching import batch
from onnx_grad.builder import Builder
from onnx_grad.errors import NoPathWarning, callers_level
from onnx_grad.forward_mode import Push
from onnx_grad.liveness import live_nodes, remove
from onnx_grad.path import Path
from onnx_grad.prepare import Forward
from onnx_grad.registry import Quantization
from onnx_grad.selection import Names
from onnx_grad.transforms.elementwise import is_elementwise
from onnx_grad.transforms.tracing import builder, new_input, trace

Pair = tuple[str, str]


@dataclass
class Jacobians:
    """Jacobians that are outputs of a model.

    Attributes:
        forward: The model.
        names: For each pair of the names of y and x, the name of the output ∂y/∂x, of the shape of y, then x.
    """

    forward: Forward
    names: dict[Pair, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What Jacobians are asked for.

    Attributes:
        wrt: Names of the tensors x.
        of: Names of the tensors y.
        stop: Names of tensors that count as constants.
        quantization: What is done about rounding.
        infix: What is between the names of y and x in that of ∂y/∂x.
    """

    wrt: Sequence[str]
    of: Sequence[str]
    stop: Names
    quantization: Quantization | None
    infix: str = "_jacobian_"


@dataclass(frozen=True)
class _Product:
    """An output that is a row or a column of a Jacobian for the direction that an input gives.

    Attributes:
        y: The name of what is differentiated.
        x: The name of what it is differentiated with respect to.
        direction: The name of the input.
        result: The name of the output.
    """

    y: str
    x: str
    direction: str
    result: str


def by_rows(forward: Forward, request: Request) -> Jacobians:
    """∂y/∂x by reverse mode: as many rows as y has elements.

    One row is enough where y has one element, and where x and y have the same shape and every element of y
    depends on the element of x at the same place only: then ∂y/∂x is diagonal.
    """
    forward, selection, path = trace(forward, request.wrt, request.of, request.stop, request.quantization)
    graph = forward.model.graph
    op = builder(graph)
    found, products, outputs = Jacobians(forward), list[_Product](), list[tidy.Output]()
    for y in selection.of:
        diagonal = [x for x in selection.wrt if _is_diagonal(graph, x, y, selection.stop)]
        at_once = selection.wrt if _is_scalar(y) else diagonal
        if at_once:
            with op.serving(str(y.name)):
                ones = op.Expand(op.scalar_like(1.0, y), op.shape(y))
            ones.shape = y.shape
            pulled = pull_back(op, path, graph, [(y, ones)])
            for x in at_once:
                if x in pulled:
                    with op.serving(str(x.name)):
                        whole = _diagonal(op, pulled[x], y) if x in diagonal else pulled[x]
                        outputs.append(_output(op, found, request, y, x, whole))
        rest = [x for x in selection.wrt if x not in at_once]
        if rest:
            dy = new_input(op, graph, y, "grad")
            pulled = pull_back(op, path, graph, [(y, dy)])
            if pulled.keys().isdisjoint(rest):
                graph.inputs.remove(dy)
            for x in rest:
                if x in pulled:
                    name = op.unique_name(f"{y.name}_grad_{x.name}")
                    outputs.append(tidy.Output(name, pulled[x], like=x))
                    products.append(_Product(str(y.name), str(x.name), str(dy.name), name))
    tidy.insert(graph, op, outputs)
    return _batched(found, request, products)


def by_columns(forward: Forward, request: Request) -> Jacobians:
    """∂y/∂x by forward mode: as many columns as x has elements."""
    products = []
    for name in request.wrt:
        forward, selection, path = trace(forward, [name], request.of, request.stop, request.quantization)
        graph = forward.model.graph
        op = builder(graph, pushes=True)
        (x,) = selection.wrt
        dx, push = new_input(op, graph, x, "tangent"), Push(path)
        tangents = push.forward(op, graph, [(x, dx)])
        if tangents.keys().isdisjoint(map(push.current, selection.of)):
            graph.inputs.remove(dx)
        outputs = []
        for y in map(push.current, selection.of):
            if y in tangents:
                result = op.unique_name(f"{y.name}_tangent_{x.name}")
                outputs.append(tidy.Output(result, tangents[y], like=y))
                products.append(_Product(str(y.name), name, str(dx.name), result))
        tidy.insert(graph, op, outputs, push.roots())
        forward = forward.inferred()
    return _batched(Jacobians(forward), request, products, are_columns=True)


def _batched(
    found: Jacobians, request: Request, products: Sequence[_Product], are_columns: bool = False
) -> Jacobians:
    """Put Jacobians into the places of `products`, and give out zeros for pairs without a path."""
    forward = found.forward.inferred() if products else found.forward
    graph = forward.model.graph
    values = _by_name(graph)
    op, outputs = builder(graph), list[tidy.Output]()
    # A loop goes on handing single tangents on beside its states: they are zeros then.
    stand_ins: dict[ir.Value, ir.Value] = {}
    before = live_nodes(graph, graph.outputs)
    for direction in dict.fromkeys(product.direction for product in products):
        along = [product for product in products if product.direction == direction]
        seed = values[direction]
        one = values[along[0].x if are_columns else along[0].y]
        with op.serving(str(one.name)):
            basis, size = _basis(op, one)
            zeros = op.zeros_like(one)
        batched = batch(op, list(graph), {seed: basis}, size)
        stand_ins[seed] = zeros
        for product in along:
            y, x, result = (values[name] for name in (product.y, product.x, product.result))
            with op.serving(str(x.name)):
                rows = batched[result] if result in batched else batched.batch.repeated(op, result)
                if are_columns:
                    rows = op.CastLike(op.Transpose(op.Flatten(rows, axis=1), perm=[1, 0]), x)
                outputs.append(_output(op, found, request, y, x, rows))
    for y, x in ((values[y], values[x]) for y in request.of for x in request.wrt):
        if (str(y.name), str(x.name)) not in found.names:
            outputs.append(_zeros(op, found, request, y, x))
    for seed, zeros in stand_ins.items():
        seed.replace_all_uses_with(zeros)
    _give_up(graph, products)
    tidy.insert(graph, op, outputs, list(stand_ins.values()))
    live = set(live_nodes(graph, graph.outputs))
    remove(graph, [node for node in (*before, *op.nodes) if node.graph is graph and node not in live])
    _order_outputs(graph, found, request)
    return Jacobians(forward, found.names)


def _basis(op: Builder, one: ir.Value) -> tuple[ir.Value, int | ir.Value]:
    """The batch of all tensors of the shape of `one` with a single one and zeros, and how many there are."""
    static = known.static_shape(one)
    count = op.Size(one) if static is None else op.constant(math.prod(static), ir.DataType.INT64)
    size: int | ir.Value = op.Reshape(count, [1]) if static is None else math.prod(static)
    positions = op.Range(0, count, 1)
    identity = op.CastLike(op.Equal(op.Unsqueeze(positions, [1]), positions), one)
    length = op.constant([size], ir.DataType.INT64) if isinstance(size, int) else size
    basis = op.Reshape(identity, _joined(op, [length, op.shape(one)]), allowzero=1)
    basis.type = one.type
    dims = known.dimensions(one)
    if dims is not None:
        symbol = ir.SymbolicDim(op.unique_name(f"{one.name}/elements"))
        basis.shape = ir.Shape([size if isinstance(size, int) else symbol, *dims])
    return basis, size


def _diagonal(op: Builder, values: ir.Value, y: ir.Value) -> ir.Value:
    """The matrix with `values`, of the shape of `y`, along its diagonal."""
    flat = op.Reshape(values, [-1])
    positions = op.Range(0, op.Size(y), 1)
    return op.Mul(flat, op.CastLike(op.Equal(op.Unsqueeze(positions, [1]), positions), values))


def _output(
    op: Builder, found: Jacobians, request: Request, y: ir.Value, x: ir.Value, whole: ir.Value
) -> tidy.Output:
    """∂y/∂x as an output, from its elements in order."""
    shaped = op.Reshape(whole, _joined(op, [op.shape(y), op.shape(x)]), allowzero=1)
    name = op.unique_name(f"{y.name}{request.infix}{x.name}")
    found.names[str(y.name), str(x.name)] = name
    return tidy.Output(name, shaped, like=ir.Value(name=name, shape=_joined_shape(y, x), type=x.type))


def _zeros(op: Builder, found: Jacobians, request: Request, y: ir.Value, x: ir.Value) -> tidy.Output:
    warnings.warn(
        f"no differentiable path leads from '{x.name}' to '{y.name}': its Jacobian is zeros",
        NoPathWarning,
        stacklevel=callers_level(),
    )
    with op.serving(str(x.name)):
        zeros = op.Expand(op.scalar_like(0.0, x), _joined(op, [op.shape(y), op.shape(x)]))
        return _output(op, found, request, y, x, zeros)


def _joined(op: Builder, shapes: Sequence[ir.Value]) -> ir.Value:
    contents = [known.constant(shape) for shape in shapes]
    if all(content is not None for content in contents):
        numbers = [int(n) for content in contents if content is not None for n in content.ravel()]
        return op.constant(numbers, ir.DataType.INT64)
    return op.Concat(*shapes, axis=0)


def _joined_shape(y: ir.Value, x: ir.Value) -> ir.Shape | None:
    dims_y, dims_x = known.dimensions(y), known.dimensions(x)
    return None if dims_y is None or dims_x is None else ir.Shape([*dims_y, *dims_x])


def _is_scalar(y: ir.Value) -> bool:
    """Whether `y` certainly has one element."""
    static = known.static_shape(y)
    return static is not None and math.prod(static) == 1


def _is_diagonal(graph: ir.Graph, x: ir.Value, y: ir.Value, stop: Iterable[ir.Value]) -> bool:
    """Whether every element of `y` certainly depends on the element of `x` at the same place only."""
    if not known.same_shape(x, y) or known.rank(y) == 0:
        return False
    return all(is_elementwise(step, like=y) for step in Path(graph, [x], [y], stop).all_steps())


def _by_name(graph: ir.Graph) -> Mapping[str, ir.Value]:
    results = (value for node in graph for value in node.outputs)
    values = (*graph.inputs, *graph.initializers.values(), *results)
    return {str(value.name): value for value in values if value.name}


def _give_up(graph: ir.Graph, products: Iterable[_Product]) -> None:
    """Take the inputs and outputs of single rows or columns from the graph."""
    inputs = {product.direction for product in products}
    outputs = {product.result for product in products}
    for value in [v for v in graph.inputs if v.name in inputs]:
        graph.inputs.remove(value)
    for value in [v for v in graph.outputs if v.name in outputs]:
        graph.outputs.remove(value)


def _order_outputs(graph: ir.Graph, found: Jacobians, request: Request) -> None:
    """The model's own outputs, then the Jacobians by y, then by x."""
    order = [found.names[y, x] for y in request.of for x in request.wrt]
    own = [value for value in graph.outputs if value.name not in order]
    added = {value.name: value for value in graph.outputs if value.name in order}
    graph.outputs.clear()
    graph.outputs.extend([*own, *(added[name] for name in order)])
