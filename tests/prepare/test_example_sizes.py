"""Outputs that are declared with the sizes of an exporter's example."""

from __future__ import annotations

import onnx
import pytest

from onnx_grad.prepare.infer import infer
from tests.graphs import parse

Shape = list[int | str]


def shape_of(model: onnx.ModelProto) -> Shape:
    return [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("g (float[T,4] x) => (float[6,4] y) { y = Relu (x) }", ["T", 4]),
        # Nothing contradicts these.
        ("g (float[T,4] x, int64[1] n) => (float[6,4] y) { y = Tile (x, n) }", [6, 4]),
        ("g (float[T,4] x, int64[2] n) => (float[6,4] y) { y = Reshape (x, n) }", [6, 4]),
        ("g (float[T,4] x) => (float[6,4] y) { y = Relu (x) z = Neg (y) }", [6, 4]),
    ],
)
def test_a_size_that_varies_with_an_input(graph: str, expected: Shape) -> None:
    model = parse(graph)
    before = model.SerializeToString()
    assert shape_of(infer(model)) == expected
    assert model.SerializeToString() == before
