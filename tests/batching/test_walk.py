"""`batch`, on nodes of a graph and on recorded ones that are in none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnx_grad import tidy
from onnx_grad.batching import Batched, batch
from onnx_grad.builder import Builder
from onnx_grad.composition import infer_composition
from onnx_grad.errors import UnsupportedOpError
from onnx_grad.recording import recording
from tests.graphs import run

F32 = ir.DataType.FLOAT


def _value(name: str, *dims: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(F32))


class Recorded:
    """y = x·w + s and what depends on x only through its shape, recorded apart from the batch."""

    def __init__(self) -> None:
        self.w, self.x, self.xs = _value("w", 3, 2), _value("x", "n", 3), _value("xs", "B", "n", 3)
        self.op = Builder(18, {"w", "x", "xs"})
        apart = self.op.apart()
        with recording(apart):
            self.squares = self.w * self.w
            self.y = apart.MatMul(self.x, self.squares)
            self.shape = apart.Shape(self.x)
            self.zeros = apart.Expand(apart.constant(0.0, F32), self.shape)
        infer_composition(apart.nodes, 18)
        self.op.nodes += apart.nodes
        self.nodes = apart.nodes

    def batched(self) -> Batched:
        return batch(self.op, self.nodes, {self.x: self.xs}, self.op.Shape(self.xs, start=0, end=1))

    def run(self, outputs: dict[str, ir.Value]) -> dict[str, np.ndarray]:
        graph = ir.Graph([self.xs, self.w], [], nodes=[], opset_imports={"": 18}, name="g")
        given = [
            tidy.Output(n, v, like=ir.Value(name=n, type=ir.TensorType(F32))) for n, v in outputs.items()
        ]
        tidy.insert(graph, self.op, given)
        model = ir.to_proto(ir.Model(graph, ir_version=10))
        return run(model, {"xs": XS, "w": W})


XS = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
W = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_counterparts_of_what_depends_on_a_batched_value() -> None:
    recorded = Recorded()
    batched = recorded.batched()
    assert recorded.y in batched
    assert recorded.squares not in batched
    assert batched[recorded.y].shape == ir.Shape(["B", "n", 2])
    np.testing.assert_allclose(recorded.run({"y": batched[recorded.y]})["y"], XS @ (W * W))


def test_what_depends_on_a_shape_only_is_repeated_when_it_is_asked_for() -> None:
    recorded = Recorded()
    batched = recorded.batched()
    assert recorded.zeros in batched
    np.testing.assert_array_equal(recorded.run({"z": batched[recorded.zeros]})["z"], np.zeros((2, 4, 3)))


def test_nothing_is_built_before_a_refusal() -> None:
    recorded = Recorded()
    apart = recorded.op.apart()
    apart.NonZero(recorded.x)
    before = len(recorded.op.nodes)
    with pytest.raises(UnsupportedOpError, match="NonZero"):
        batch(recorded.op, [*recorded.nodes, *apart.nodes], {recorded.x: recorded.xs}, 2)
    assert len(recorded.op.nodes) == before


def test_the_given_nodes_stay() -> None:
    recorded = Recorded()
    before = [(node.op_type, tuple(node.inputs)) for node in recorded.nodes]
    recorded.batched()
    assert [(node.op_type, tuple(node.inputs)) for node in recorded.nodes] == before
