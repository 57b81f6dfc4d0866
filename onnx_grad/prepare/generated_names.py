"""Names that ONNX Runtime's optimizer gives, and cannot give a second time.

Where it shares a constant that a saved model already has under such a name, and then makes a new constant, it
takes the name for free, finds that it is not, and loads no model at all (microsoft/onnxruntime, 1.32). A
gradient gives it occasion to. So these constants, which are shapes, get other names.
"""

from __future__ import annotations

from onnx_grad.prepare.validate import all_nodes
from onnx_grad.prepare.weights import LightModel

_GENERATED = ("gemm_input_shape", "gemm_output_shape")


def give_up_generated_names(light: LightModel) -> None:
    """Rename the constants concerned, and wherever they are read.

    Args:
        light: The model, which is changed in place.
    """
    constants = light.tensors.keys() - set(light.declared_inputs)
    generated = [name for name in _GENERATED if name in constants]
    if not generated:
        return
    taken = {name for node in all_nodes(light.proto.graph) for name in (*node.input, *node.output)}
    renamed = {name: _free(name, taken) for name in generated}
    light.tensors = {renamed.get(name, name): tensor for name, tensor in light.tensors.items()}
    graph = light.proto.graph
    for value in (*graph.initializer, *graph.value_info, *graph.input):
        value.name = renamed.get(value.name, value.name)
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]


def _free(name: str, taken: set[str]) -> str:
    candidates = (f"{name}_saved{'' if count == 0 else count}" for count in range(len(taken) + 1))
    return next(candidate for candidate in candidates if candidate not in taken)
