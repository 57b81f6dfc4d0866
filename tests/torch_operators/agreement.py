"""One operator, once as a gradient graph and once in PyTorch: the same outputs, the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from tests.oracle import evaluator, given_names, quiet_vjp, single_node, with_shapes

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")

FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


@dataclass
class Row:
    """A node and the PyTorch function that computes the same.

    Attributes:
        op_type: The operator.
        inputs: Its inputs; float64 ones are differentiated, others are run-time tensors all the same.
        function: Called with all inputs that are there as tensors; gives the float outputs.
        attributes: The node's attributes.
        outputs: How many outputs the node has.
        opset: The opset of the model.
        rtol: Relative tolerance, where a kernel computes in less than float64.
        shapes: What is known of shapes, one comparison each.
        of: The node's outputs that the function gives; all of them when left out.
        single: The graph is in float32, because nothing evaluates it right in float64.
    """

    op_type: str
    inputs: Mapping[str, np.ndarray | None]
    function: Callable[..., Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 18
    rtol: float = 1e-9
    shapes: Sequence[str] = ("static", "unknown")
    of: Sequence[str] = ()
    single: bool = False

    def given(self) -> dict[str, np.ndarray]:
        """The inputs that are there, in the dtype of the graph."""
        present = {name: array for name, array in self.inputs.items() if array is not None}
        return {name: self.cast(array) for name, array in present.items()}

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Float64 becomes float32 where the graph is in that."""
        return array.astype(np.float32) if self.single and array.dtype == np.float64 else array

    def tolerance(self) -> float:
        """Relative and absolute tolerance."""
        return max(self.rtol, 1e-5) if self.single else self.rtol

    def model(self) -> onnx.ModelProto:
        """The node as a model."""
        present = self.given()
        model = single_node(
            self.op_type,
            {name: present.get(name) for name in self.inputs},
            outputs=self.outputs,
            opset=self.opset,
            **self.attributes,
        )
        # onnx infers no type for some.
        for output in model.graph.output:
            if not output.type.tensor_type.elem_type:
                output.type.tensor_type.elem_type = FLOAT if self.single else DOUBLE
        return model


def rows(*table: Row) -> Any:
    """A test for each row, named after its operator."""
    return pytest.mark.parametrize(
        "row", [pytest.param(r, id=f"{r.op_type}-{i}") for i, r in enumerate(table)]
    )


def agree(row: Row, seed: int = 1) -> None:
    """Assert that outputs and gradients of `row` are PyTorch's, whatever is known of shapes."""
    given = row.given()
    floats = [name for name, array in row.inputs.items() if array is not None and array.dtype == np.float64]
    # PyTorch computes in float64, of the numbers that the graph is given.
    tensors = {
        name: torch.tensor(array.astype(np.float64), requires_grad=True)
        if name in floats
        else torch.tensor(array)
        for name, array in given.items()
    }
    result = row.function(*tensors.values())
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    names = list(row.of) or [f"y{i}" for i in range(len(results))]
    generator = np.random.default_rng(seed)
    dys = [row.cast(np.asarray(generator.standard_normal(tuple(y.shape)))) for y in results]
    seeds = [torch.tensor(dy.astype(np.float64)) for dy in dys]
    expected = [y.detach().numpy() for y in results]
    expected += _gradients(results, [tensors[x] for x in floats], seeds)
    for knowledge in row.shapes:
        transformed = quiet_vjp(with_shapes(row.model(), knowledge), floats, names)
        cotangents, gradients = given_names(transformed)
        seeded = {cotangents[y]: dy for y, dy in zip(names, dys, strict=True)}
        values = evaluator(transformed)({**given, **seeded})
        for name, value in zip([*names, *(gradients[x] for x in floats)], expected, strict=True):
            actual, where = values[name], f"{name}, {knowledge} shapes"
            assert actual.dtype == row.cast(value).dtype, where
            assert actual.shape == value.shape, where
            tolerance = row.tolerance()
            np.testing.assert_allclose(actual, value, rtol=tolerance, atol=tolerance, err_msg=where)


def _gradients(results: list[Any], sources: list[Any], seeds: list[Any]) -> list[np.ndarray]:
    """Zeros where PyTorch sees no path."""
    ways = [(y, dy) for y, dy in zip(results, seeds, strict=True) if y.requires_grad]
    if not ways:
        return [np.zeros(tuple(x.shape)) for x in sources]
    found = torch.autograd.grad([y for y, _ in ways], sources, [dy for _, dy in ways], allow_unused=True)
    pairs = zip(found, sources, strict=True)
    return [np.zeros(tuple(x.shape)) if dx is None else dx.numpy() for dx, x in pairs]
