"""Half precision where it pays: products in float16 or bfloat16, sensitive sums in float32.

As in PyTorch's autocast, matrix products and convolutions take their operands in half precision, what only
moves, chooses or bounds numbers takes them as they come, and everything else (normalizations, softmax, sums,
losses) is computed in float32. Parameters stay float32, the master weights; where a product reads one, it is
rounded first, and its gradient comes back in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import InputError
from onnx_grad.transforms.tracing import builder

Precision: TypeAlias = Literal["float16", "bfloat16"]

PRECISIONS: Mapping[str, ir.DataType] = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

# These give exact results, or as exact ones as half precision can be, for operands in half precision.
_FOLLOWING = frozenset(
    "Abs Add Clip Concat Div Dropout Expand Flatten Gather Identity LeakyRelu Max MaxPool Min Mul Neg Pad "
    "Relu Reshape Sigmoid Slice Split Squeeze Sub Tanh Tile Transpose Unsqueeze Where".split()
)


def precision_of(name: str) -> ir.DataType:
    """The element type that products are computed in.

    Raises:
        InputError: There is no such precision.
    """
    if name not in PRECISIONS:
        raise InputError(f"precision='{name}' is none of {', '.join(map(repr, PRECISIONS))}")
    return PRECISIONS[name]


def use_half_precision(model: ir.Model, dtype: ir.DataType) -> None:
    """Let the products of a prepared forward `model`, which is changed, be computed in `dtype`.

    Inputs, outputs and initializers keep their types.
    """
    graph = model.graph
    op = builder(graph)
    casts = _Casts(graph, op, dtype)
    for node in list(graph):
        floats = [value for value in node.inputs if value is not None and value.dtype in casts.types]
        if not _is_halved(node, floats, op.opset, dtype):
            casts.read_in(node, ir.DataType.FLOAT)
            continue
        casts.read_in(node, dtype)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(dtype)
    casts.restore_outputs()


def _is_halved(node: ir.Node, floats: list[ir.Value], opset: int, dtype: ir.DataType) -> bool:
    """Whether `node` takes its operands in half precision; not where its specification does not allow it."""
    if node.domain != "" or not floats:
        return False
    wanted = node.op_type in _PRODUCTS or (node.op_type in _FOLLOWING and _follows(floats, dtype))
    return wanted and _allows(node.op_type, opset, dtype)


@functools.cache
def _allows(op_type: str, opset: int, dtype: ir.DataType) -> bool:
    schema = onnx.defs.get_schema(op_type, opset)
    types = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return all(
        f"tensor({dtype.name.lower()})" in types[formal.type_str]
        for formal in schema.outputs
        if "tensor(float)" in types.get(formal.type_str, ())
    )


def _follows(floats: list[ir.Value], dtype: ir.DataType) -> bool:
    """Whether all operands that are no constants are in half precision, and there is one."""
    moving = [value for value in floats if known.constant(value) is None]
    return bool(moving) and all(value.dtype == dtype for value in moving)


class _Casts:
    """Casts of values between float32 and half precision, each made once, right behind what is cast."""

    def __init__(self, graph: ir.Graph, op: Builder, dtype: ir.DataType) -> None:
        self.types = (ir.DataType.FLOAT, dtype)
        self._graph, self._op = graph, op
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def read_in(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Let `node`, and the bodies that it holds, read its float operands in `dtype`."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in self.types and value.dtype != dtype:
                node.replace_input_with(index, self._cast(value, dtype, node))
        for value in set(known.captured_values(node)):
            if value.dtype in self.types and value.dtype != dtype:
                cast = self._cast(value, dtype, node)
                for user, index in list(value.uses()):
                    if user.graph is not self._graph:
                        user.replace_input_with(index, cast)

    def restore_outputs(self) -> None:
        """Give the outputs of the graph out in float32, under their names."""
        last = None
        for position, value in enumerate(self._graph.outputs):
            if value.dtype == self.types[1]:
                cast = self._cast(value, ir.DataType.FLOAT, last)
                self._graph.outputs[position] = cast
                value.name, cast.name = cast.name, value.name

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        made = self._made.get((value, dtype))
        if made is None:
            with self._op.serving(str(value.name)):
                made = self._op.Cast(value, to=dtype)
            made.shape = value.shape
            node = made.producer()
            producer = value.producer()
            if node is not None and producer is not None:
                self._graph.insert_after(producer, node)
            elif node is not None and before is not None:
                self._graph.insert_before(next(iter(self._graph)), node)
            self._made[value, dtype] = made
        return made


def nodes_in(model: ir.Model, dtype: ir.DataType) -> Iterator[ir.Node]:
    """The nodes of a graph that give a result in `dtype`, casts aside."""
    for node in model.graph:
        if node.op_type != "Cast" and any(value.dtype == dtype for value in node.outputs):
            yield node
