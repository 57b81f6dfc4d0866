"""The training algorithms that a model carries in its `training_info`, joined to its graph and parted again.

An algorithm is a graph that goes on where the model's ends: it may read all that the model has, and the model
reads nothing of it. A `Gradient` in it differentiates through both.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx.defs import AI_ONNX_PREVIEW_TRAINING_DOMAIN as DOMAIN

from onnx_grad.errors import ModelError
from onnx_grad.liveness import read_values
from onnx_grad.lowering.operators import lower_operators
from onnx_grad.lowering.scopes import nodes_below
from onnx_grad.prepare import Forward, prepare_light
from onnx_grad.prepare.lift import is_old
from onnx_grad.prepare.weights import LightModel, lighten, lighten_ir


def lower_with_training_info(
    light: LightModel,
) -> tuple[Forward, dict[str, str], list[onnx.TrainingInfoProto]]:
    """Lower the graph of a model, and the algorithms in its `training_info` together with it.

    Args:
        light: The model; it may be changed.

    Returns:
        The model, the operator of every node that was replaced, and the `training_info` of the result.

    Raises:
        OnnxGradError: As `lower_operators`.
    """
    infos = [onnx.TrainingInfoProto.FromString(i.SerializeToString()) for i in light.proto.training_info]
    del light.proto.training_info[:]
    if not infos:
        return *lower_operators(prepare_light(light)), []
    if len(infos) > 1 and is_old(light.proto):
        raise ModelError(
            f"the model has {len(infos)} training algorithms and an opset below 18, to which they cannot be "
            "lifted together; keep one of them, or convert the model to opset 18"
        )
    lowered: dict[str, str] = {}
    bound = {b.key for info in infos for b in (*info.update_binding, *info.initialization_binding)}
    domain = [opset for opset in light.proto.opset_import if opset.domain == DOMAIN]
    for info in infos:
        if info.HasField("initialization"):
            info.initialization.CopyFrom(_lifted(info.initialization, light.proto))
        own = _names(light.proto.graph) | light.tensors.keys()
        _join(light, info.algorithm)
        variables = _make_overridable(light, bound)
        forward, operators = lower_operators(prepare_light(light))
        forward = forward.inferred()
        lowered |= operators
        for value in [value for value in forward.model.graph.inputs if value.name in variables]:
            forward.model.graph.inputs.remove(value)
        info.algorithm.CopyFrom(_part(forward.model, own, info.algorithm))
        base_dir, light = light.base_dir, lighten_ir(forward.model)
        light.base_dir = base_dir
        light.proto.opset_import.extend(domain)
    return forward, lowered, infos


def _lifted(initialization: onnx.GraphProto, proto: onnx.ModelProto) -> onnx.GraphProto:
    """A graph that computes first values, at the opset of the result."""
    if not is_old(proto):
        return initialization
    model = onnx.ModelProto(ir_version=proto.ir_version, graph=initialization)
    model.opset_import.extend(proto.opset_import)
    return prepare_light(lighten(model)).light.proto.graph


def _names(graph: onnx.GraphProto) -> set[str]:
    """The names of all values of a graph itself."""
    results = (name for node in graph.node for name in node.output)
    return {*(v.name for v in (*graph.input, *graph.initializer)), *results} - {""}


def _join(light: LightModel, algorithm: onnx.GraphProto) -> None:
    """Let the graph of `light` go on with `algorithm`.

    Raises:
        ModelError: Both have a value of one name.
    """
    added = lighten(onnx.ModelProto(graph=algorithm), light.base_dir)
    twice = (_names(light.proto.graph) | light.tensors.keys()) & (_names(algorithm) | added.tensors.keys())
    if twice:
        names = ", ".join(f"'{name}'" for name in sorted(twice))
        raise ModelError(f"training_info: the model and its training algorithm both define {names}")
    for field in ("node", "input", "output", "initializer", "value_info"):
        getattr(light.proto.graph, field).extend(getattr(added.proto.graph, field))
    light.tensors |= {name: _embedded(tensor) for name, tensor in added.tensors.items()}
    light.declared_inputs += added.declared_inputs


def _embedded(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor with its data: a result in another folder does not find the file of an algorithm's."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.base_dir:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return tensor


def _make_overridable(light: LightModel, names: Collection[str]) -> set[str]:
    """Declare initializers that training changes as inputs, so that nothing relies on what they hold.

    Returns:
        The names of those that were not inputs before.
    """
    variables = (light.tensors.keys() & names) - set(light.declared_inputs)
    listed = {value.name for value in light.proto.graph.input}
    for name in sorted(variables - listed):
        tensor = light.tensors[name]
        shape = [d if isinstance(d, int) else d.value for d in tensor.shape]
        info = onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape)
        light.proto.graph.input.append(info)
    light.declared_inputs += tuple(sorted(variables))
    return variables


def _part(model: ir.Model, own: Collection[str], algorithm: onnx.GraphProto) -> onnx.GraphProto:
    """Take out of `model` all that does not serve values of its own, as the graph that `algorithm` became."""
    graph = model.graph
    kept = [value for node in graph for value in node.outputs if value.name in own]
    served = set(nodes_below(kept))
    nodes = [node for node in graph if node not in served]
    read = {value for node in served for value in read_values(node)}
    constants = [v for v in graph.initializers.values() if v.name not in own and v not in read]
    inputs = [value for value in graph.inputs if value.name not in own]
    outputs = list(graph.outputs[len(graph.outputs) - len(algorithm.output) :])
    name = algorithm.name or "algorithm"
    view = ir.GraphView(inputs, outputs, nodes=nodes, initializers=constants, name=name)
    parted = ir.serde.serialize_graph(view)  # type: ignore[arg-type]
    for _ in outputs:
        graph.outputs.pop()
    for value in inputs:
        graph.inputs.remove(value)
    for value in constants:
        graph.initializers.pop(str(value.name))
    graph.remove(nodes)
    return parted
