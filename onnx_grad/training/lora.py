"""Low-rank adapters: W + s·A·B in the place of a frozen weight W, of which only A and B are trained.

The product is never formed while training: the layer's own result is added to what its input gives through
A and B, so that neither a weight nor its gradient is there twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import InputError, NotDifferentiableError, RuntimeUnavailableError
from onnx_grad.prepare import Model, prepare
from onnx_grad.recording import recording
from onnx_grad.runtime import read_model
from onnx_grad.saving import check_target
from onnx_grad.sessions import onnxruntime
from onnx_grad.training.checkpoints import write_new
from onnx_grad.training.parameters import Patterns, check_patterns, fits, listed
from onnx_grad.training.training_graph import delivered
from onnx_grad.transforms.tracing import builder

Array: TypeAlias = np.ndarray[Any, Any]

_LAYERS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class LoRA:
    """Which weights get adapters, and of which rank (Hu et al. 2021).

    Attributes:
        rank: The rank r of A·B.
        alpha: The adapters are multiplied with s = alpha / rank; `None` for s = 1.
        weights: Names or patterns of weights of `MatMul`, `Gemm` and `Conv`; `None` for all.
    """

    rank: int = 8
    alpha: float | None = None
    weights: Patterns = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"LoRA: rank={self.rank} is less than 1")

    @property
    def scale(self) -> float:
        """s, what A·B is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class Adapter:
    """The adapter of one weight.

    Attributes:
        weight: The name of W.
        a: The name of A, `[inputs, rank]`; for `Conv`, `[rank, inputs, …]`.
        b: The name of B, `[rank, outputs]`; for `Conv`, `[outputs, rank, 1, …]`.
        scale: s.
        is_transposed: Whether W is `[outputs, inputs]`.
        is_convolution: Whether W is that of a `Conv`.
    """

    weight: str
    a: str
    b: str
    scale: float
    is_transposed: bool
    is_convolution: bool

    @property
    def names(self) -> tuple[str, str]:
        """The names of A and B."""
        return self.a, self.b

    def merged(self, weight: Array, adapters: Mapping[str, Array]) -> Array:
        """W + s·A·B, summed in float64 and rounded once."""
        a, b = (adapters[name].astype(np.float64) for name in (self.a, self.b))
        if self.is_convolution:
            product = np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a)
        else:
            product = (a @ b).T if self.is_transposed else a @ b
        total: Array = (weight.astype(np.float64) + self.scale * product).astype(weight.dtype)
        return total


def with_adapters(
    model: ir.Model, lora: LoRA, seed: int = 0, *, as_inputs: bool = False
) -> tuple[ir.Model, list[Adapter]]:
    """The prepared `model` with adapters that change nothing yet: A is random and B zero.

    Args:
        model: A forward model; it is not changed.
        lora: Which weights get adapters.
        seed: What A is drawn by.
        as_inputs: Whether A and B are graph inputs with zeros as default values, to be given by an adapter.

    Raises:
        UnknownNameError: A pattern fits no weight that can have an adapter.
        NotDifferentiableError: There is no such weight at all.
    """
    forward = prepare(model).model
    graph = forward.graph
    readers = dict(_candidates(graph))
    if not readers:
        raise NotDifferentiableError("LoRA: the model has no weight of a MatMul, Gemm or ungrouped Conv")
    patterns = listed(lora.weights)
    check_patterns("LoRA weights", patterns, list(readers))
    op = builder(graph)
    adapters = []
    for index, (name, nodes) in enumerate(readers.items()):
        if lora.weights is None or fits(name, patterns):
            weight = graph.initializers[name]
            rng = None if as_inputs else np.random.default_rng([seed, index])
            adapters.append(_adapt(op, graph, weight, nodes, lora, rng, as_inputs))
    for value in op.initializers:
        if value.uses():
            graph.register_initializer(value)
    return forward, adapters


def merged_weights(
    graph: ir.Graph, adapters: Sequence[Adapter], weights: Mapping[str, Array]
) -> dict[str, Array]:
    """`weights` with each adapter added to the weight it belongs to, which may be one of the model's own.

    Args:
        graph: The forward graph without adapters.
        adapters: Its adapters.
        weights: A and B of all adapters, and whatever else was trained.
    """
    merged = dict(weights)
    for adapter in adapters:
        held = graph.initializers[adapter.weight].const_value
        content = weights.get(adapter.weight)
        if content is None and held is not None:
            content = held.numpy()
        if content is not None:
            merged[adapter.weight] = adapter.merged(content, weights)
        for name in adapter.names:
            del merged[name]
    return merged


def lora_model(
    model: Model, lora: LoRA | None = None, *, save_as: str | os.PathLike[str] | None = None
) -> onnx.ModelProto | ir.Model:
    """The model with inputs for low-rank adapters, which it does without where none are given.

    ONNX Runtime fills them from an adapter that `Trainer.export_adapter` wrote, given with
    `RunOptions.add_active_adapter`.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        lora: Which weights get adapters.
        save_as: Where to write the result as well.

    Returns:
        A model of the kind that was given, with inputs `<weight>.lora_A` and `<weight>.lora_B` whose default
        values are zeros.
    """
    if save_as is not None:
        check_target(save_as)
    result, _ = with_adapters(read_model(model), lora or LoRA(), as_inputs=True)
    return delivered(result, model, save_as)


@dataclass(frozen=True)
class _Reader:
    """A node that multiplies with a weight, and whether it is transposed before."""

    node: ir.Node
    transposed: bool


def _candidates(graph: ir.Graph) -> Iterator[tuple[str, list[_Reader]]]:
    """The weights that can have an adapter, with the nodes that read them."""
    for name, value in graph.initializers.items():
        readers = list(_readers(graph, value))
        if readers and all(reader is not None for reader in readers):
            nodes = [reader for reader in readers if reader is not None]
            if len({(r.node.op_type == "Conv", _is_transposed(r)) for r in nodes}) == 1:
                yield name, nodes


def _readers(graph: ir.Graph, value: ir.Value) -> Iterator[_Reader | None]:
    """The layers that `value` is the weight of; `None` for any other use."""
    if value.dtype not in known.FLOAT_TYPES:
        return
    for node, index in value.uses():
        if node.op_type == "Transpose" and known.rank(value) == 2 and node.graph is graph:
            for user, position in node.outputs[0].uses():
                layer = _layer(graph, user, position, value)
                yield _Reader(user, True) if layer and user.op_type == "MatMul" else None
        elif _layer(graph, node, index, value):
            yield _Reader(node, False)
        else:
            yield None


def _layer(graph: ir.Graph, node: ir.Node, index: int, weight: ir.Value) -> bool:
    if node.op_type not in _LAYERS or node.domain != "" or index != 1 or node.graph is not graph:
        return False
    if node.op_type == "Conv":
        return node.attributes.get_int("group", 1) == 1 and (known.rank(weight) or 0) > 2
    return known.rank(weight) == 2


def _is_transposed(reader: _Reader) -> bool:
    if reader.node.op_type == "Gemm":
        return bool(reader.node.attributes.get_int("transB", 0))
    return reader.transposed


def _adapt(
    op: Builder,
    graph: ir.Graph,
    weight: ir.Value,
    readers: Sequence[_Reader],
    lora: LoRA,
    rng: np.random.Generator | None,
    as_inputs: bool,
) -> Adapter:
    name, shape = str(weight.name), known.static_shape(weight) or ()
    convolution, transposed = readers[0].node.op_type == "Conv", _is_transposed(readers[0])
    if convolution:
        fan_in = math.prod(shape[1:])
        a_shape, b_shape = (lora.rank, *shape[1:]), (shape[0], lora.rank, *[1] * (len(shape) - 2))
    else:
        fan_in, outputs = (shape[1], shape[0]) if transposed else shape
        a_shape, b_shape = (fan_in, lora.rank), (lora.rank, outputs)
    bound = 1.0 / math.sqrt(max(fan_in, 1))
    start = np.zeros(a_shape) if rng is None else rng.uniform(-bound, bound, a_shape)
    a = _initializer(op, graph, f"{name}.lora_A", start, as_inputs)
    b = _initializer(op, graph, f"{name}.lora_B", np.zeros(b_shape), as_inputs)
    for reader in readers:
        first = len(op.nodes)
        with recording(op), op.serving(name):
            x = known.operand(reader.node, 0)
            change = _change(op, reader.node, x, op.CastLike(a, weight), op.CastLike(b, weight), lora.scale)
            output = reader.node.outputs[0]
            uses = list(output.uses())
            total = op.Add(output, change)
        _take_place(graph, reader.node, output, total, uses, op.nodes[first:])
    return Adapter(name, str(a.name), str(b.name), lora.scale, transposed, convolution)


def _change(op: Builder, node: ir.Node, x: ir.Value, a: ir.Value, b: ir.Value, scale: float) -> ir.Value:
    """What the adapter adds to the result of a layer: s·x·A·B."""
    if node.op_type == "Conv":
        options = {key: node.attributes[key] for key in _CONVOLUTION if key in node.attributes}
        inner = op.Conv(x, a, **{key: attribute.value for key, attribute in options.items()})
        result: ir.Value = op.Conv(inner, b)
    else:
        if node.op_type == "Gemm":
            scale *= node.attributes.get_float("alpha", 1.0)
            x = op.Transpose(x, perm=[1, 0]) if node.attributes.get_int("transA", 0) else x
        result = op.MatMul(op.MatMul(x, a), b)
    return result if scale == 1.0 else op.Mul(result, scale)


_CONVOLUTION = ("auto_pad", "dilations", "pads", "strides", "kernel_shape")


def _take_place(
    graph: ir.Graph,
    node: ir.Node,
    output: ir.Value,
    total: ir.Value,
    uses: Sequence[Any],
    new: Sequence[ir.Node],
) -> None:
    """Let `total` be read where `output` was, under its name."""
    graph.insert_after(node, new)
    for user, index in uses:
        user.replace_input_with(index, total)
    for position, given in enumerate(graph.outputs):
        if given is output:
            graph.outputs[position] = total
    total.shape, total.type = output.shape, output.type
    total.name, output.name = output.name, total.name


def _initializer(op: Builder, graph: ir.Graph, name: str, content: Array, as_input: bool) -> ir.Value:
    name = op.unique_name(name)
    tensor = ir.Tensor(content.astype(np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape(content.shape), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = tensor
    graph.register_initializer(value)
    if as_input:
        graph.inputs.append(value)
    return value


def write_adapter(path: str | os.PathLike[str], tensors: Mapping[str, Array], version: int = 1) -> None:
    """Write tensors as an adapter in ONNX Runtime's own format, for a model that has them as inputs.

    Args:
        path: Where to write it.
        tensors: The tensors by the names of the inputs.
        version: The version of the adapter and of the model that is noted in it.

    Raises:
        RuntimeUnavailableError: This version of ONNX Runtime has no adapters.
        OutputError: It cannot be written.
    """
    check_target(path)
    runtime = onnxruntime()
    if not hasattr(runtime, "AdapterFormat"):
        raise RuntimeUnavailableError(
            f"ONNX Runtime {runtime.__version__} cannot write adapters; install 1.20 or later"
        )
    adapter = runtime.AdapterFormat()
    adapter.set_adapter_version(version)
    adapter.set_model_version(version)
    held = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    values = {name: runtime.OrtValue.ortvalue_from_numpy(array) for name, array in held.items()}
    adapter.set_parameters(values)
    write_new(Path(path), lambda temporary: adapter.export_adapter(str(temporary)))
