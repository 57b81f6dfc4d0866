"""Building backward nodes: operators by name, constants promoted, equal nodes shared.

A rule writes `op.ReduceSum(x, [0], keepdims=0)` or plain arithmetic, `dy * (1.0 - y * y)`. Python numbers
take the dtype of the operand they meet, and the same operator on the same operands is built only once.
Sums over elements of half precision are taken in single, whatever a provider's kernels would do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, overload

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.wiring import Edge, bodies, wiring

Array = npt.NDArray[Any]
Operand = ir.Value | Array | bool | int | float | Sequence[int] | None

METADATA_PREFIX = "pkg.onnx_grad."

# Two such nodes with equal operands have different results: never shared.
RANDOM_OPERATORS = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


# In half precision, partial results of many terms overflow or lose small terms, while the total need not.
_SUMS = frozenset(
    "CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum "
    "ReduceSumSquare".split()
)


@dataclass(frozen=True)
class _Signature:
    """Type variables of an operator's inputs and outputs, as its schema names them."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variadic: bool

    def input_type(self, index: int) -> str:
        if index < len(self.inputs):
            return self.inputs[index]
        return self.inputs[-1] if self.variadic else ""


@functools.cache
def _signature(op_type: str, domain: str, opset: int) -> _Signature:
    schema = onnx.defs.get_schema(op_type, opset, domain)
    inputs = schema.inputs
    only = {
        constraint.type_param_str: constraint.allowed_type_strs[0]
        for constraint in schema.type_constraints
        if len(constraint.allowed_type_strs) == 1
    }
    return _Signature(
        tuple(formal.type_str for formal in inputs),
        tuple(only.get(formal.type_str, formal.type_str) for formal in schema.outputs),
        bool(inputs) and inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic,
    )


class Operator(Protocol):
    """Builds one node of an operator: inputs are positional, attributes are keywords."""

    @overload
    def __call__(self, *operands: Operand, outputs: None = None, **attributes: Any) -> ir.Value: ...
    @overload
    def __call__(self, *operands: Operand, outputs: int, **attributes: Any) -> tuple[ir.Value, ...]: ...


class Builder:
    """Records new nodes of one graph without inserting them.

    Any operator of the default domain is a method: positional arguments are inputs (`None` for one that is
    left out), keyword arguments are attributes, and `outputs=n` asks for a tuple of n outputs.

    Attributes:
        opset: Version of the default domain that the graph imports.
        nodes: The nodes built so far, in topological order.
        initializers: The constants that the nodes read.
        scope: Prefix of the names of what is built next: the forward node or tensor it serves.
        repeats: Whether the nodes are of a body that runs more than once.
        edges: How values enter and leave the forward bodies that the nodes differentiate.
        pushes: Whether tangents are pushed forward through the graph rather than cotangents pulled back.
        remembered: What was found out about the graph, by the type of what holds it.
        asked_for: The values whose cotangents or tangents are given or asked for; `None` where not known.
    """

    def __init__(self, opset: int, taken_names: set[str], pushes: bool = False) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.scope = ""
        self.repeats = False
        self.edges: list[Edge] = []
        self.pushes = pushes
        self.remembered: dict[type[Any], Any] = {}
        self.asked_for: frozenset[ir.Value] | None = None
        self._metadata: dict[str, str] = {}
        self._unlabelled: set[ir.Node] = set()
        self._taken = taken_names
        self._counters: dict[str, int] = {}
        self._constants: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
        self._built: dict[tuple[Any, ...], tuple[ir.Value, ...]] = {}

    def for_body(self, node: ir.Node, repeats: bool = False) -> Builder:
        """A builder for a body that differentiates one of `node`: names are new in the whole model.

        Args:
            node: The forward node.
            repeats: Whether the body runs more than once.
        """
        inner = Builder(self.opset, self._taken, self.pushes)
        inner.repeats = repeats or self.repeats
        wires = wiring(node)
        inner.edges = [*self.edges, *(wires.edges() if wires is not None else ())]
        inner.scope, inner._metadata, inner._counters = self.scope, self._metadata, self._counters
        return inner

    def apart(self) -> Builder:
        """A builder of the same graph, with constants in common, that records its nodes separately."""
        other = Builder(self.opset, self._taken)
        other.__dict__.update({**self.__dict__, "nodes": [], "_built": {}, "_unlabelled": set()})
        for name in [name for name in other.__dict__ if name[0].isupper()]:
            del other.__dict__[name]
        return other

    def __getattr__(self, op_type: str) -> Operator:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        method: Operator = functools.partial(self.node, op_type)
        self.__dict__[op_type] = method
        return method

    def differentiating(self, node: ir.Node, name: str) -> contextlib.AbstractContextManager[None]:
        """Name and annotate what is built inside after the forward `node`, which is called `name`."""
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return self._annotating(name, {"forward_node": name, "rule": operator})

    def serving(self, tensor: str) -> contextlib.AbstractContextManager[None]:
        """Name and annotate what is built inside after a forward `tensor`: a seed, zeros, an output."""
        return self._annotating(tensor, {"tensor": tensor})

    def batching(self, node: ir.Node, name: str) -> contextlib.AbstractContextManager[None]:
        """Name and annotate what is built inside after `node`, called `name`, whose counterpart it is."""
        own = {
            key.removeprefix(METADATA_PREFIX): note
            for key, note in node.metadata_props.items()
            if key.startswith(METADATA_PREFIX)
        }
        return self._annotating(name, {**own, "batched_node": name})

    @contextlib.contextmanager
    def _annotating(self, scope: str, notes: dict[str, str]) -> Iterator[None]:
        before = self.scope, self._metadata, self._unlabelled
        self.scope = scope
        self._metadata = {METADATA_PREFIX + key: note for key, note in notes.items()}
        self._unlabelled = set()
        try:
            yield
        finally:
            self.scope, self._metadata, self._unlabelled = before

    def label(self, value: ir.Value, name: str) -> None:
        """Give `value` and its node a telling name, when they were built for the current forward node."""
        node = value.producer()
        if node in self._unlabelled:
            self._unlabelled.discard(node)
            node.name = value.name = self.unique_name(name)

    def node(
        self,
        op_type: str,
        *operands: Operand,
        outputs: int | None = None,
        domain: str = "",
        shared: bool = True,
        **attributes: Any,
    ) -> Any:
        """Build `op_type(*operands, **attributes)`.

        Args:
            op_type: Type of the operator.
            *operands: Its inputs; `None` for one that is left out.
            outputs: How many outputs to return, as a tuple; a single value when left out.
            domain: Domain of the operator.
            shared: Whether an equal node that was built before may serve.
            **attributes: Its attributes; those that are `None` are left out.

        Returns:
            Its output, or a tuple of them when `outputs` is given.
        """
        first = operands[0] if operands else None
        if op_type in _SUMS and isinstance(first, ir.Value) and first.dtype in known.HALF_TYPES:
            total = self.node(op_type, self.widened(first), *operands[1:], **attributes)
            return self.CastLike(total, first)
        signature = _signature(op_type, domain, self.opset)
        inputs = self._inputs(signature, operands)
        # An empty name in the last place crashes fusions of ONNX Runtime that look for what is there.
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        given = {name: value for name, value in attributes.items() if value is not None}
        key = op_type, domain, outputs, inputs, *[(k, _hashable(v)) for k, v in given.items()]
        made = self._built.get(key) if shared else None
        if made is None:
            made = self._build(op_type, domain, signature, inputs, given, outputs or 1)
            if op_type not in RANDOM_OPERATORS:
                self._built[key] = made
        return made[0] if outputs is None else made

    def optional_output(self, node: ir.Node, index: int, dtype: ir.DataType) -> ir.Value:
        """Output `index` of the forward `node`, which is made to give it where it leaves it out.

        Nothing else that the node computes changes, nor does it run twice: a random mask stays the same.
        """
        present = len(node.outputs)
        if index >= present:
            node.resize_outputs(index + 1)
            for added in node.outputs[present:]:
                added.name = ""
        output = node.outputs[index]
        if not output.name:
            formal = str(index)
            if onnx.defs.has(node.op_type, node.domain):
                formal = onnx.defs.get_schema(node.op_type, self.opset, node.domain).outputs[index].name
            output.name = self.unique_name(f"{self.scope}/{formal}")
            output.type = ir.TensorType(dtype)
        return output

    def constant(self, content: Any, dtype: ir.DataType) -> ir.Value:
        """The constant tensor `content` of type `dtype`; equal constants are one initializer."""
        array = np.array(content, dtype=dtype.numpy(), order="C")
        key = dtype, array.shape, array.tobytes()
        value = self._constants.get(key)
        if value is None:
            name = self.unique_name(f"constant/{dtype.name.lower()}/{_content_label(array)}")
            tensor = ir.Tensor(array, dtype=dtype, name=name)
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(dtype),
                const_value=tensor,
            )
            self._constants[key] = value
            self.initializers.append(value)
        return value

    def scalar_like(self, number: float, like: ir.Value) -> ir.Value:
        """The rank-0 constant `number` in the dtype of `like`, also where that dtype is unknown."""
        if like.dtype is None:
            return self.CastLike(self.constant(number, ir.DataType.FLOAT), like)
        return self.constant(number, like.dtype)

    def CastLike(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """`value` in the dtype of `like`: a `Cast`, or nothing, where the dtypes are known."""
        if like.dtype is None:
            return self.node("CastLike", value, like)  # type: ignore[no-any-return]
        if value.dtype == like.dtype:
            return value
        return self.Cast(value, to=like.dtype)

    def Shape(self, value: ir.Value, start: int | None = None, end: int | None = None) -> ir.Value:
        """The shape of `value`; read before a conversion, which need not be made for it."""
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
            value = producer.inputs[0]
        return self.node("Shape", value, start=start, end=end)  # type: ignore[no-any-return]

    def widened(self, value: ir.Value) -> ir.Value:
        """`value` in float32; where a node built here narrowed it to half precision, as it was before."""
        producer = value.producer()
        if value.dtype in known.HALF_TYPES and producer is not None and producer.graph is None:
            source = producer.inputs[0] if producer.op_type == "Cast" else None
            if source is not None and source.dtype == ir.DataType.FLOAT:
                return source
        wide = self.Cast(value, to=ir.DataType.FLOAT)
        wide.shape = value.shape
        return wide

    def negated(self, value: ir.Value) -> ir.Value | None:
        """What `value` is the negative of, where a node built here negates it for nothing else yet."""
        node = value.producer()
        if node is None or node.op_type != "Neg" or node.graph is not None or value.uses():
            return None
        return node.inputs[0]

    def total(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a + b, as a difference where one of them is the negative of something."""
        for one, other in ((a, b), (b, a)):
            negated = self.negated(other)
            if negated is not None:
                return self.node("Sub", one, negated)  # type: ignore[no-any-return]
        return self.node("Add", a, b)  # type: ignore[no-any-return]

    def shape(self, value: ir.Value) -> ir.Value:
        """The shape of `value` as a 1-D int64 tensor: a constant where it is static."""
        static = known.static_shape(value)
        if static is not None:
            return self.constant(static, ir.DataType.INT64)
        return self.Shape(value)

    def reshape_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """`value` with the shape of `like`, which has as many elements."""
        lengths = known.all_but_one(like)
        if lengths is None:
            return self.Reshape(value, self.shape(like), allowzero=1)
        result = self.Reshape(value, self.constant(lengths, ir.DataType.INT64), allowzero=1)
        result.shape = like.shape
        return result

    def zeros_like(self, value: ir.Value) -> ir.Value:
        """Zeros of the shape and dtype of `value`."""
        return self.Expand(self.scalar_like(0.0, value), self.shape(value))

    def unique_name(self, name: str) -> str:
        """`name`, or `name` with the first numeric suffix that makes it new; it is taken from then on."""
        candidate = name
        while candidate in self._taken:
            self._counters[name] = self._counters.get(name, 0) + 1
            candidate = f"{name}_{self._counters[name]}"
        self._taken.add(candidate)
        return candidate

    def _inputs(self, signature: _Signature, operands: Sequence[Operand]) -> tuple[ir.Value | None, ...]:
        return tuple(
            [
                operand
                if operand is None or _is_value(operand)
                else self._promote(index, signature, operands)
                for index, operand in enumerate(operands)
            ]
        )

    def _promote(self, index: int, signature: _Signature, operands: Sequence[Operand]) -> ir.Value:
        """A Python number takes the dtype of a sibling of its type variable; integers default to int64."""
        operand = operands[index]
        if isinstance(operand, (np.ndarray, np.generic)):
            return self.constant(operand, ir.DataType.from_numpy(operand.dtype))
        if isinstance(operand, (bool, int, float)):
            variable = signature.input_type(index)
            for position, sibling in enumerate(operands):
                if _is_value(sibling) and signature.input_type(position) == variable:
                    return self.scalar_like(operand, sibling)
        if isinstance(operand, float):
            return self.scalar_like(operand, next(filter(_is_value, operands)))
        if isinstance(operand, bool):
            return self.constant(operand, ir.DataType.BOOL)
        return self.constant(operand, ir.DataType.INT64)

    def _build(
        self,
        op_type: str,
        domain: str,
        signature: _Signature,
        inputs: tuple[ir.Value | None, ...],
        attributes: dict[str, Any],
        count: int,
    ) -> tuple[ir.Value, ...]:
        name = self.unique_name(f"{self.scope}/{op_type}" if self.scope else op_type)
        node = ir.Node(
            domain,
            op_type,
            inputs,
            [_attribute(name, value) for name, value in attributes.items()],
            num_outputs=count,
            name=name,
            metadata_props=self._metadata.copy(),
        )
        results: tuple[ir.Value, ...] = node.outputs  # type: ignore[assignment]
        for index, output in enumerate(results):
            output.name = name if index == 0 else self.unique_name(name)
            dtype = _output_dtype(op_type, signature, index, inputs, attributes)
            if dtype is not None:
                output.type = ir.TensorType(dtype)
        self.nodes.append(node)
        self._unlabelled.add(node)
        return results


def taken_names(graph: ir.Graph) -> set[str]:
    """Every name of a value or node in the model, subgraphs included."""
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        taken.add(node.name)
        taken.update([value.name for value in node.outputs])
        for body in bodies(node):
            taken.update(value.name for value in (*body.inputs, *body.initializers.values()))
    return {name for name in taken if name}


# What is promoted to a constant. Asking whether something is an `ir.Value`, which is a protocol, takes some
# microseconds where it is not.
_LITERALS = (bool, int, float, list, tuple, range, np.ndarray, np.generic)


def _is_value(operand: Operand) -> TypeGuard[ir.Value]:
    return type(operand) is ir.Value or (operand is not None and not isinstance(operand, _LITERALS))


def _attribute(name: str, value: Any) -> ir.Attr:
    """The attribute `name`; the common kinds without the many questions onnx_ir asks of a value."""
    if isinstance(value, int):
        return ir.AttrInt64(name, int(value))
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return ir.AttrInt64s(name, [int(v) for v in value])
    return ir.convenience.convert_attribute(name, value)


def _hashable(attribute: Any) -> Any:
    """What tells two attributes apart; a tensor is kept by its node, so that its identity stays its own."""
    if isinstance(attribute, (int, float, str)):
        return type(attribute), attribute
    if isinstance(attribute, (list, tuple)):
        return tuple(map(_hashable, attribute))
    return id(attribute)


def _content_label(array: Array) -> str:
    if array.size <= 8:
        return str(array.tolist()).replace(" ", "")
    return "x".join(map(str, array.shape))


def _output_dtype(
    op_type: str,
    signature: _Signature,
    index: int,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any],
) -> ir.DataType | None:
    """The dtype of an output as far as the schema tells it from the inputs."""
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    if op_type == "CastLike":
        return inputs[1].dtype if inputs[1] is not None else None
    variable = signature.outputs[min(index, len(signature.outputs) - 1)]
    if variable.startswith("tensor("):
        return _CONCRETE_TYPES.get(variable)
    for position, value in enumerate(inputs):
        if value is not None and signature.input_type(position) == variable:
            return value.dtype
    if op_type == "ConstantOfShape":
        return attributes["value"].dtype if "value" in attributes else ir.DataType.FLOAT
    return None


_CONCRETE_TYPES = {
    "tensor(int64)": ir.DataType.INT64,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(float)": ir.DataType.FLOAT,
}
