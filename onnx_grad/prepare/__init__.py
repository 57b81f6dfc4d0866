"""From whatever was given to a forward graph that the rules can read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad.prepare.expand import expand_local_functions, expand_nodes
from onnx_grad.prepare.generated_names import give_up_generated_names
from onnx_grad.prepare.gradient_names import inline_training_functions
from onnx_grad.prepare.infer import infer
from onnx_grad.prepare.lift import is_old, lift
from onnx_grad.prepare.load import Model, load
from onnx_grad.prepare.sequences import express_over_tensors
from onnx_grad.prepare.slices import sliced_initializers
from onnx_grad.prepare.state_shapes import forget_wrong_state_shapes
from onnx_grad.prepare.transposed_sizes import settle_transposed_sizes
from onnx_grad.prepare.validate import name_nodes, validate
from onnx_grad.prepare.weights import LightModel, check_external, lighten_ir, make_constants_dense
from onnx_grad.prepare.window_counts import settle_window_counts

# Node metadata needs IR version 10, which ONNX Runtime reads since 1.18.
OLDEST_IR_VERSION = 10

# Since this IR version, an initializer that is an input too can be overridden, and need not be one.
_FIRST_OVERRIDABLE = 4

__all__ = ["Forward", "Model", "prepare", "prepare_light"]


@dataclass
class Forward:
    """A forward model at opset 18 or later, its functions expanded, its shapes and types inferred.

    Attributes:
        light: The model without its large weights.
        model: The same as an `ir.Model` with all weights; a copy that may be changed.
    """

    light: LightModel
    model: ir.Model

    def expanded(self, node_names: Collection[str]) -> Forward:
        """The same with the nodes of the given names replaced by their function bodies."""
        self.light.proto = expand_nodes(self.light.proto, node_names)
        return _forward(self.light)

    def over_tensors(self, is_active: Callable[[ir.Value], bool]) -> Forward | None:
        """The same with tensors for the sequences that derivatives flow through; `None` where none can be."""
        if not express_over_tensors(self.model.graph, is_active):
            return None
        return self.inferred()

    def inferred(self) -> Forward:
        """The same after `model` was changed: shapes and types are inferred anew, in new objects."""
        light = self.lightened()
        light.base_dir = self.light.base_dir
        return _forward(light)

    def lightened(self) -> LightModel:
        """The light copy of `model` as it is now."""
        self.model.ir_version = max(self.model.ir_version, OLDEST_IR_VERSION)
        return lighten_ir(self.model, annotated=bool(self.light.proto.graph.quantization_annotation))

    def for_slices(self, axes: Mapping[str, int]) -> tuple[Forward, dict[str, ir.TensorProtocol]]:
        """The same for one slice of some initializers, which become inputs of the shape of a slice.

        Args:
            axes: The axis that each is sliced along, by name.

        Returns:
            The model, and the initializers.
        """
        if not axes:
            return self, {}
        tensors = {name: self.light.tensors.pop(name) for name in axes}
        self.light.proto = sliced_initializers(self.light.proto, tensors, axes)
        return _forward(self.light), tensors

    def without_functions(self) -> Forward:
        """The same with the calls of all functions of the model replaced by their bodies."""
        self.light.proto = expand_local_functions(self.light.proto)
        del self.light.proto.functions[:]
        return _forward(self.light)


def prepare(model: Model) -> Forward:
    """Load, validate, lift and infer `model`, which itself is not changed.

    Raises:
        ModelError: What is wrong with the model, and where.
    """
    return prepare_light(load(model))


def prepare_light(light: LightModel) -> Forward:
    """The same for a model that is loaded; it may be changed."""
    validate(light.proto)
    light.proto = inline_training_functions(light.proto)
    give_up_generated_names(light)
    make_constants_dense(light.proto.graph)
    if is_old(light.proto):
        light.proto = lift(expand_local_functions(light.proto))
    light.adopt()
    return _forward(light)


def _forward(light: LightModel) -> Forward:
    light.proto = infer(light.proto)
    settled = settle_window_counts(light.proto) | settle_transposed_sizes(light.proto)
    if settled | forget_wrong_state_shapes(light.proto):
        light.proto = infer(light.proto)
    name_nodes(light.proto.graph)
    model = ir.from_proto(light.proto)
    for graph in model.graphs():
        if graph is not model.graph:
            check_external(graph.initializers.tensors(), light.base_dir)
    light.attach(model)
    if model.ir_version < _FIRST_OVERRIDABLE:
        _make_constant(model.graph)
    return Forward(light, model)


def _make_constant(graph: ir.Graph) -> None:
    """Take the initializers out of the inputs, where an old file had to list them.

    ONNX Runtime takes them for constants in such a file; in a newer one, which the result is, it would take
    them for inputs with a default, and forgo what it does with constant weights.
    """
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
