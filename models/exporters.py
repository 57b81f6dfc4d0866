"""Both exporters of PyTorch, and the way back from a file to the weights of a module."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

TORCHSCRIPT_OPSET = 17
"""Below 18, as in most older files, so that lifting an opset is exercised here too."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)

DynamicAxes = Mapping[str, dict[int, str]]
"""Symbolic dimensions: name of a graph input or output to ``{axis: symbol}``."""


def export_both(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic_inputs: DynamicAxes,
    outputs: DynamicAxes,
    stem: str,
    folder: Path,
) -> list[Path]:
    """Exports one module with the dynamo and with the TorchScript exporter, weights identical.

    Args:
        module: The module; it is put into evaluation mode.
        inputs: One example tensor per argument of ``module.forward``, named as there.
        dynamic_inputs: The symbolic dimensions of the inputs.
        outputs: Name of each output, in order, and its symbolic dimensions.
        stem: The files are called ``<stem>.onnx`` and ``<stem>_torchscript.onnx``.
        folder: Where they are written.

    Returns:
        The two paths, dynamo's first.
    """
    module.eval()
    paths = [folder / f"{stem}.onnx", folder / f"{stem}_torchscript.onnx"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is absent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # above all, that TorchScript's exporter is the old one
        program = torch.onnx.export(
            module,
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dict(dynamic_inputs),
            dynamo=True,
            verbose=False,
        )
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            paths[1],
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**dynamic_inputs, **outputs},
            opset_version=TORCHSCRIPT_OPSET,
            dynamo=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no program for {stem}")
    onnx.save(without_provenance(program.model_proto), paths[0])
    return paths


def without_provenance(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes, in place, dynamo's metadata: stack traces full of paths of the exporting machine."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        part.ClearField("metadata_props")
    return model


def load_weights(module: AnyModule, path: Path) -> AnyModule:
    """Gives a module the weights of a file whose initializers are named as in its ``state_dict``.

    Args:
        module: A fresh module of the class which was exported; changed in place.
        path: The file, from either exporter.

    Returns:
        The module, in evaluation mode.

    Raises:
        ValueError: A weight of the module is not in the file.
    """
    initializers = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    state = module.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):  # a counter for training, which no export carries
            continue
        if name not in initializers:
            raise ValueError(f"{path.name} has no initializer {name!r}")
        value.copy_(torch.from_numpy(numpy_helper.to_array(initializers[name]).copy()))
    return module.eval()
