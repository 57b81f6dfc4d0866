"""Where in a forward graph derivatives can be infinite, and where elements can go unused.

Both are questions about the neighbourhood of a value, answered by a walk along the graph through operators
that treat elements separately, move them or sum them. A walk ends at operators that mix elements, such as
`MatMul`: a NaN spreads through those in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from onnx_grad import known, signs
from onnx_grad.builder import Builder
from onnx_grad.step_function import is_unit_step
from onnx_grad.wiring import Edge, bodies

# A derivative is infinite at the edge of the domain, or next to it.
_SINGULAR = frozenset("Sqrt Log Reciprocal Pow Div Mod Asin Acos Acosh Atanh ReduceLogSum".split())

# The result overflows, and is a factor of the derivative.
_OVERFLOWING = frozenset("Exp Sinh Cosh".split())

# The result is NaN where every operand of a row is masked with −∞.
_NORMALIZING = frozenset("Softmax LogSoftmax".split())

# Some elements of an operand do not matter for the result.
_SELECTING = frozenset(
    "Clip Compress Gather GatherElements GatherND HardSigmoid HardSwish Max MaxPool Min PRelu ReduceMax "
    "ReduceMin Relu ScatterElements ScatterND Shrink Slice ThresholdedRelu TopK Where".split()
)

# Operators of ONNX Runtime's own domain each element of whose result depends on many elements, and others of
# which are smooth.
_FUSED_MIXING = frozenset(
    "Attention BiasSoftmax EmbedLayerNormalization FusedConv FusedGemm FusedMatMul GemmFastGelu "
    "GroupQueryAttention Inverse MatMulBnb4 MatMulNBits MultiHeadAttention NhwcConv NhwcFusedConv "
    "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization "
    "TransposeMatMul".split()
)
_FUSED = _FUSED_MIXING | frozenset(
    "BiasAdd BiasGelu BiasSplitGelu ExpandDims FastGelu Gelu QuickGelu Range RotaryEmbedding Trilu".split()
)

# Each element of the result depends on many elements.
_MIXING = (
    _NORMALIZING
    | _FUSED_MIXING
    | frozenset(
        "Conv ConvTranspose DFT Einsum GRU Gemm GroupNormalization InstanceNormalization LRN LSTM "
        "LayerNormalization MatMul MeanVarianceNormalization RMSNormalization RNN".split()
    )
)

# The cotangents that the rule gives have the shape of the result, and a factor that may not be finite.
_ELEMENTWISE = (_SINGULAR | _OVERFLOWING | _NORMALIZING) - {"ReduceLogSum"} | frozenset(
    "Abs Asinh Atan Cos Elu Erf Gelu LeakyRelu Mish Mul Sigmoid Sin Softplus Softsign Swish Tan Tanh".split()
)

Neighbours = Callable[[ir.Value], Iterable[ir.Node]]
Target = Callable[[ir.Node], bool]
Further = Callable[[ir.Node], Iterable[ir.Value]]


def meets_singularity(op: Builder, node: ir.Node) -> bool:
    """Whether what `op` takes through `node` may be infinite at some elements and not at others.

    That is the cotangent of its result, which operators behind it have multiplied by their derivatives, or,
    where tangents are pushed forward, the tangents of its operands, by operators before it.
    """
    around = _neighbourhood(op)
    if op.pushes:
        return around.comes_from(node, around.breeds)
    return around.leads_to(node.outputs[0], _is_singular)


def is_elementwise(node: ir.Node) -> bool:
    """Whether the cotangents that the rule of `node` gives have the shape of its result."""
    return node.op_type in _ELEMENTWISE and node.domain == ""


def may_be_unused_at_singularity(op: Builder, node: ir.Node) -> bool:
    """Whether the derivative of `node` may be infinite or NaN at an element that is not used.

    It is not used further on; or, where tangents are pushed forward, not before, so that its tangent is zero.
    Then only a singularity of `node` itself matters: where an operand is not finite, nor is the result.
    """
    around = _neighbourhood(op)
    if op.pushes:
        return _is_singular(node) and around.comes_from(node, _selects)
    if not around.is_exposed(node):
        return False
    return around.leads_to(node.outputs[0], _selects)


def continue_at(op: Builder, result: ir.Value, output: ir.Value) -> None:
    """Let walks that come to `result`, which is computed beside the forward graph, go on at its `output`."""
    _neighbourhood(op).cross(result, output)


class _Neighbourhood:
    """Walks along one forward graph, remembering what they found: all together take linear time.

    Args:
        edges: How values enter and leave the bodies that the walks are in.
    """

    def __init__(self, edges: Iterable[Edge]) -> None:
        self._memory: dict[tuple[object, ir.Value], bool] = {}
        self._crossings: dict[Neighbours, dict[ir.Value, list[ir.Value]]] = {_forward_uses: {}, _producer: {}}
        for source, target in edges:
            self.cross(source, target)
            self._crossings[_producer].setdefault(target, []).append(source)

    def cross(self, source: ir.Value, target: ir.Value) -> None:
        """Let walks along the graph go on from `source` to `target`."""
        self._crossings[_forward_uses].setdefault(source, []).append(target)

    def leads_to(self, value: ir.Value, target: Target) -> bool:
        """Whether the forward graph leads from `value` to a node that is a `target`."""
        return self._walk((_forward_uses, target), value, _forward_uses, target, _float_outputs)

    def comes_from(self, node: ir.Node, source: Target) -> bool:
        """Whether the forward graph leads from a node that is a `source` to `node`."""
        return any(
            self._walk((_producer, source), value, _producer, source, _float_inputs)
            for value in _float_inputs(node)
        )

    def is_exposed(self, node: ir.Node) -> bool:
        """Whether the derivative of `node` may be infinite or NaN."""
        return self.breeds(node) or any(self._may_be_infinite(value) for value in _float_inputs(node))

    def breeds(self, node: ir.Node) -> bool:
        """Whether `node` may give infinities or NaN from finite operands, or have such a derivative."""
        if node.op_type in _NORMALIZING:
            return self._walk(_is_where, node.inputs[0], _producer, _is_where, _float_inputs)
        return node.op_type in _OVERFLOWING or _is_singular(node)

    def _may_be_infinite(self, value: ir.Value) -> bool:
        """Whether `value` may hold infinities or NaN that no operator before it selected out."""
        return self._walk(_producer, value, _producer, self.breeds, _unselected_inputs)

    def _walk(
        self, question: object, start: ir.Value | None, nodes: Neighbours, target: Target, further: Further
    ) -> bool:
        if start is None:
            return False
        seen, pending, found = {start}, [start], False
        while pending and not found:
            value = pending.pop()
            remembered = self._memory.get((question, value))
            if remembered is None:
                neighbours = nodes(value)
                found = any(map(target, neighbours))
                reached = {v for n in neighbours if n.op_type not in _MIXING for v in further(n)}
                reached.update(self._crossings[nodes].get(value, ()))
                pending.extend(new := reached - seen)
                seen |= new
            else:
                found = remembered
        self._memory.update({(question, value): found for value in ((start,) if found else seen)})
        return found


def _neighbourhood(op: Builder) -> _Neighbourhood:
    """What is remembered of the graph that `op` extends, which does not change while it does."""
    around: _Neighbourhood | None = op.remembered.get(_Neighbourhood)
    if around is None:
        around = op.remembered[_Neighbourhood] = _Neighbourhood(op.edges)
    return around


def _forward_uses(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, without the backward nodes, which are in no graph yet."""
    return [node for node in value.consumers() if node.graph is not None]


def _producer(value: ir.Value) -> list[ir.Node]:
    node = value.producer()
    return [] if node is None else [node]


def _float_outputs(node: ir.Node) -> list[ir.Value]:
    return [output for output in node.outputs if known.may_be_float(output)]


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and known.may_be_float(value)]


def _unselected_inputs(node: ir.Node) -> list[ir.Value]:
    return [] if node.op_type in _SELECTING else _float_inputs(node)


def _is_where(node: ir.Node) -> bool:
    return node.op_type == "Where"


def _is_singular(node: ir.Node) -> bool:
    """Whether a derivative of `node` may be infinite at a point of its domain."""
    if _is_foreign(node):
        return True
    if node.op_type in ("Div", "Mod"):
        return not _is_never_zero(node.inputs[1])
    if node.op_type == "Pow":
        return not (_is_whole_number(node.inputs[1]) or signs.is_positive(node.inputs[0]))
    if node.op_type in ("Sqrt", "Log", "Reciprocal"):
        return not signs.is_positive(node.inputs[0])
    return node.op_type in _SINGULAR


def _selects(node: ir.Node) -> bool:
    """Whether some elements of an operand of `node` may not matter: a selection, or a product with a mask."""
    if _is_foreign(node) or node.op_type in _SELECTING:
        return True
    return node.op_type == "Mul" and any(map(_is_mask, node.inputs))


def _is_foreign(node: ir.Node) -> bool:
    """Whether nothing is known of what `node` does with its operands."""
    if node.domain == "com.microsoft" and node.op_type in _FUSED:
        return False
    return node.domain != "" or next(bodies(node), None) is not None


def _is_mask(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is not None and is_unit_step(node):
        return True
    if node is None or node.op_type != "Cast" or node.inputs[0] is None:
        return False
    return node.inputs[0].dtype == ir.DataType.BOOL


def _is_never_zero(divisor: ir.Value | None) -> bool:
    content = signs.small_constant(divisor)
    return signs.is_positive(divisor) if content is None else bool(np.all(content != 0))


def _is_whole_number(exponent: ir.Value | None) -> bool:
    content = signs.small_constant(exponent)
    if content is None:
        return False
    numbers = np.asarray(content, dtype=np.float64)
    return bool(np.all((numbers >= 0) & (numbers == np.floor(numbers))))
