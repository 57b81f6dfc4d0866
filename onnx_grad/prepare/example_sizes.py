"""Sizes of an example, left by an exporter in the shapes of outputs whose sizes vary.

PyTorch's exporter declares [6, 'N', 10] for the output of an LSTM that reads ['T', 'N', 4] and that it was
shown an example of length 6. ONNX Runtime only warns of another length there. The cotangent of that output is
an input, which it would refuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import onnx

from onnx_grad.prepare.validate import all_nodes

Shapes = Mapping[str, onnx.TensorShapeProto]


@contextlib.contextmanager
def fixed_sizes_forgotten(proto: onnx.ModelProto) -> Iterator[Shapes]:
    """Inside, outputs have no sizes that inference might contradict; gives their shapes as declared.

    Those are outputs that no node reads, in a model whose inputs have sizes that vary.
    """
    outputs = [v for v in proto.graph.output if v.type.tensor_type.HasField("shape")]
    if not outputs or next(_symbols(proto), None) is None:
        yield {}
        return
    read: set[str] = set()
    for node in all_nodes(proto.graph):
        read.update(node.input)
    outputs = [value for value in outputs if value.name not in read]
    declared = {}
    for value in outputs:
        shape = value.type.tensor_type.shape
        declared[value.name] = onnx.TensorShapeProto()
        declared[value.name].CopyFrom(shape)
        for dim in shape.dim:
            dim.ClearField("dim_value")
    try:
        yield declared
    finally:
        for value in outputs:
            if value.name in declared:
                value.type.tensor_type.shape.CopyFrom(declared[value.name])


def restore_fixed_sizes(inferred: onnx.ModelProto, declared: Shapes) -> None:
    """Give outputs the sizes that were declared, save where inference found them to be those of inputs."""
    symbols = set(_symbols(inferred)) if declared else set()
    for value in inferred.graph.output if declared else ():
        shape, found = declared.get(value.name), value.type.tensor_type.HasField("shape")
        own = value.type.tensor_type.shape
        if shape is None or (found and len(own.dim) != len(shape.dim)):
            continue
        if not found:
            own.CopyFrom(shape)
        for dim, fixed in zip(own.dim, shape.dim, strict=True):
            if not (dim.HasField("dim_value") or dim.dim_param in symbols):
                dim.CopyFrom(fixed)


def _symbols(proto: onnx.ModelProto) -> Iterator[str]:
    """The symbolic sizes of inputs."""
    dims = (dim for value in proto.graph.input for dim in value.type.tensor_type.shape.dim)
    return (dim.dim_param for dim in dims if dim.dim_param)
