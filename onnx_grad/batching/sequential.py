"""What has no batched form runs example by example: a `Scan` over the batch axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import flat
from onnx_grad.batching.emission import copied
from onnx_grad.batching.operands import Batch
from onnx_grad.builder import METADATA_PREFIX, Builder
from onnx_grad.liveness import read_values
from onnx_grad.rules.bodies import body_graph, placeholder

# Where the metadata of a `Scan` over the examples says which operator it runs.
SEQUENTIAL = METADATA_PREFIX + "example_by_example"


def example_by_example(
    op: Builder,
    node: ir.Node,
    batch: Batch,
    counterpart: Callable[[ir.Value], ir.Value],
    is_batched: Callable[[ir.Value], bool],
) -> Sequence[ir.Value | None]:
    """The results of `node` for each example, stacked: a `Scan` whose body is the node itself.

    ONNX Runtime rejects a `Scan` of length zero, so that this needs at least one example.

    Args:
        op: Builds the graph.
        node: The node for one example.
        batch: The batch axis.
        counterpart: What a value has become, batched or shared.
        is_batched: Whether it is batched.
    """
    inner = op.for_body(node, repeats=True)
    sliced = [value for value in dict.fromkeys(read_values(node)) if is_batched(value)]
    slices = [_slice(op, inner, value, counterpart(value)) for value in sliced]
    examples = {value: piece.example for value, piece in zip(sliced, slices, strict=True)}
    copy = copied(inner, node, lambda value: examples.get(value) or counterpart(value))
    given = [output for output in copy.outputs if output.name]
    shapeless = [output for output in given if known.rank(output) is None]
    # ONNX Runtime wants to know the ranks of what a `Scan` stacks.
    written = [inner.Reshape(y, [-1]) if y in shapeless else y for y in given]
    written += [inner.Shape(y) for y in shapeless]
    for y in written:
        if y.shape is None:
            y.shape = ir.Shape([None])
    body = body_graph(inner, inner.nodes, [piece.input for piece in slices], written, f"{node.name}/example")
    stacks: tuple[ir.Value, ...] = op.node(
        "Scan",
        *(piece.whole for piece in slices),
        outputs=len(written),
        shared=False,
        body=body,
        num_scan_inputs=len(sliced),
    )
    for stack, y in zip(stacks, written, strict=True):
        stack.type = y.type
    scan = stacks[0].producer()
    if scan is not None:
        scan.metadata_props[SEQUENTIAL] = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    shapes = dict(zip(shapeless, stacks[len(given) :], strict=True))
    found = {
        y: _reshaped(op, batch, stack, shapes[y]) if y in shapes else stack
        for y, stack in zip(given, stacks, strict=False)
    }
    results = [found.get(output) for output in copy.outputs]
    for result, output in zip(results, node.outputs, strict=True):
        if result is not None:
            batch.annotate(result, output)
    return results


@dataclass(frozen=True)
class _Slice:
    """A batch of which the body reads one example.

    Attributes:
        whole: What the `Scan` reads slices of.
        input: A slice of it.
        example: The example, in its shape.
    """

    whole: ir.Value
    input: ir.Value
    example: ir.Value


def _slice(op: Builder, inner: Builder, value: ir.Value, batch: ir.Value) -> _Slice:
    """A batch of examples that are like `value`; as vectors, where their rank is unknown."""
    if known.rank(value) is not None:
        example = placeholder(op, value, str(value.name))
        return _Slice(batch, example, example)
    vector = ir.Value(name=op.unique_name(str(value.name)), shape=ir.Shape([None]), type=value.type)
    return _Slice(flat(op, batch), vector, inner.Reshape(vector, op.Shape(batch, start=1), allowzero=1))


def _reshaped(op: Builder, batch: Batch, stack: ir.Value, shapes: ir.Value) -> ir.Value:
    """Stacked vectors as what the examples were, which all have the same shape."""
    shape = op.Gather(shapes, op.constant(0, ir.DataType.INT64), axis=0)
    return op.Reshape(stack, op.Concat(batch.length(op), shape, axis=0), allowzero=1)
