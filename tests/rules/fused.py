"""Checks of ONNX Runtime's own operators against PyTorch.

An operator is written down once more with PyTorch, in float64. Its kernel shows that this is what it
computes; autograd shows whether the gradient is right, whatever is known of shapes, and the gradient's
gradient too. As kernels of float64 are rare, the fused node is left out of the gradient graph there, and what
it would give comes from PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from tests.oracle import evaluator, given_names, quiet_vjp, with_shapes

torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")

DOMAIN = "com.microsoft"
RANKED = ("static", "symbolic")
ALWAYS = (*RANKED, "unknown")

Inputs = Mapping[str, np.ndarray | None]
# Takes the inputs in order, and gives the outputs in order, `None` for those that are left out.
Reference = Callable[..., Any]

_TOLERANCES = {np.float32: 2e-4, np.float16: 3e-2}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed values, float64."""
    return np.asarray(np.random.default_rng(seed + sum(shape)).standard_normal(shape))


def indices(*values: Any) -> np.ndarray:
    """An int32 tensor, as masks, lengths and words are."""
    return np.array(values, dtype=np.int32)


def check(
    op_type: str,
    inputs: Inputs,
    reference: Reference,
    *,
    domain: str = DOMAIN,
    dtypes: Sequence[type] = (np.float32,),
    of: Sequence[int] | None = None,
    shapes: Sequence[str] = RANKED,
    rtol: float = 1e-7,
    opset: int = 18,
    second_order: bool = True,
    constants: Sequence[str] = (),
    **attributes: Any,
) -> None:
    """Assert that kernel, gradient and gradient of the gradient agree with `reference`.

    Args:
        op_type: Type of the operator.
        inputs: Where to differentiate, float64 and integers; `None` for inputs that are left out.
        reference: The operator in PyTorch.
        domain: Its domain.
        dtypes: For which the CPU provider has a kernel.
        of: The outputs to differentiate; all float outputs when left out.
        shapes: What the transform is told of the shapes.
        rtol: Relative tolerance in float64.
        opset: Of the default domain.
        second_order: Whether to differentiate twice.
        constants: Inputs that are initializers.
        **attributes: Of the node.
    """
    case = _Case(op_type, inputs, reference, domain, opset, tuple(constants), attributes, of)
    for dtype in dtypes:
        case.check_kernel(dtype)
    for knowledge in shapes:
        case.check_gradient(knowledge, rtol)
    if second_order:
        case.check_second_order(max(rtol, 1e-6))


def node_model(
    op_type: str,
    inputs: Inputs,
    outputs: Sequence[str] = ("y0",),
    *,
    domain: str = DOMAIN,
    opset: int = 18,
    constants: Sequence[str] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node whose outputs have the dtype of its first input; an empty name leaves one out."""
    names = [name if array is not None else "" for name, array in inputs.items()]
    node = onnx.helper.make_node(op_type, names, outputs, "fused", domain=domain, **attributes)
    given = {name: array for name, array in inputs.items() if array is not None}
    element_type = onnx.helper.np_dtype_to_tensor_dtype(next(a.dtype for a in given.values()))
    graph = onnx.helper.make_graph(
        [node],
        "case",
        [_info(name, array) for name, array in given.items() if name not in constants],
        [onnx.helper.make_tensor_value_info(name, element_type, None) for name in outputs if name],
        [onnx.numpy_helper.from_array(given[name], name) for name in constants],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


class _Case:
    """One node at one point."""

    def __init__(
        self,
        op_type: str,
        inputs: Inputs,
        reference: Reference,
        domain: str,
        opset: int,
        constants: tuple[str, ...],
        attributes: Mapping[str, Any],
        of: Sequence[int] | None,
    ) -> None:
        self.op_type, self.domain, self.opset = op_type, domain, opset
        self.inputs, self.constants, self.attributes = inputs, constants, attributes
        self.point = {name: array for name, array in inputs.items() if array is not None}
        self.wrt = [name for name, array in self.point.items() if array.dtype == np.float64]
        self.tensors = {name: torch.tensor(array) for name, array in self.point.items()}
        for name in self.wrt:
            self.tensors[name].requires_grad_()
        results = reference(*(self.tensors.get(name) for name in inputs))
        self.results = results if isinstance(results, tuple) else (results,)
        chosen = range(len(self.results)) if of is None else of
        self.of = [i for i in chosen if self.results[i] is not None and self.results[i].requires_grad]
        self.cotangents = {i: torch.tensor(normal(*self.results[i].shape, seed=1)) for i in self.of}
        for cotangent in self.cotangents.values():
            cotangent.requires_grad_()
        self.first = self._autograd(
            [self.results[i] for i in self.of],
            list(self.cotangents.values()),
            [self.tensors[x] for x in self.wrt],
        )

    @staticmethod
    def _autograd(results: Sequence[Any], cotangents: Sequence[Any], wrt: Sequence[Any]) -> list[Any]:
        found = torch.autograd.grad(results, wrt, cotangents, create_graph=True, allow_unused=True)
        return [
            torch.zeros_like(x) if gradient is None else gradient
            for x, gradient in zip(wrt, found, strict=True)
        ]

    def model(self, dtype: type) -> onnx.ModelProto:
        """The node, with outputs for what PyTorch gives."""
        outputs = {
            f"y{i}" if result is not None else "": _element_type(result, dtype)
            for i, result in enumerate(self.results)
        }
        point = self.at(dtype)
        model = node_model(
            self.op_type,
            {name: point.get(name) for name in self.inputs},
            [f"y{i}" if result is not None else "" for i, result in enumerate(self.results)],
            domain=self.domain,
            opset=self.opset,
            constants=self.constants,
            **self.attributes,
        )
        for output in model.graph.output:
            output.type.tensor_type.elem_type = outputs[output.name]
        return model

    def at(self, dtype: type) -> dict[str, np.ndarray]:
        """The point in some precision."""
        return {n: a.astype(dtype) if n in self.wrt else a for n, a in self.point.items()}

    def fed(self, dtype: type) -> dict[str, np.ndarray]:
        """What a session is given of the point."""
        return {name: array for name, array in self.at(dtype).items() if name not in self.constants}

    def check_kernel(self, dtype: type) -> None:
        """The kernel gives what the reference says, and the gradient that runs beside it is right."""
        model, tolerance = self.model(dtype), _TOLERANCES[dtype]
        values = evaluator(model)(self.fed(dtype))
        for i, result in enumerate(self.results):
            if result is not None:
                _assert_close(values[f"y{i}"], result, tolerance, f"output {i} of the kernel")
        transformed = quiet_vjp(model, self.wrt, [f"y{i}" for i in self.of])
        seeds, gradients = given_names(transformed)
        cotangents = {seeds[f"y{i}"]: _array(dy).astype(dtype) for i, dy in self.cotangents.items()}
        given = evaluator(transformed)({**self.fed(dtype), **cotangents})
        for name, expected in zip(self.wrt, self.first, strict=True):
            assert given[gradients[name]].dtype == dtype
            _assert_close(given[gradients[name]], expected, tolerance, f"{name} in {dtype.__name__}")

    def check_gradient(self, knowledge: str, rtol: float) -> None:
        """The gradient in float64."""
        model = with_shapes(self.model(np.float64), knowledge)
        transformed = quiet_vjp(model, self.wrt, [f"y{i}" for i in self.of])
        seeds, gradients = given_names(transformed)
        cotangents = {seeds[f"y{i}"]: _array(dy) for i, dy in self.cotangents.items()}
        given = self.run_without_fused(transformed, cotangents, list(gradients.values()))
        for name, expected in zip(self.wrt, self.first, strict=True):
            assert given[gradients[name]].dtype == np.float64
            _assert_close(given[gradients[name]], expected, rtol, f"{name}, {knowledge} shapes")

    def check_second_order(self, rtol: float) -> None:
        """The gradient of the gradient in float64, for cotangents of every gradient."""
        once = quiet_vjp(self.model(np.float64), self.wrt, [f"y{i}" for i in self.of])
        seeds, gradients = given_names(once)
        wrt = [*self.wrt, *seeds.values()]
        twice = quiet_vjp(once, wrt, list(gradients.values()))
        outer, second = given_names(twice)
        cotangents = {seeds[f"y{i}"]: _array(dy) for i, dy in self.cotangents.items()}
        directions = [torch.tensor(normal(*x.shape, seed=2)) for x in self.first]
        for name, direction in zip(self.wrt, directions, strict=True):
            cotangents[outer[gradients[name]]] = _array(direction)
        given = self.run_without_fused(twice, cotangents, list(second.values()))
        depends = [(x, d) for x, d in zip(self.first, directions, strict=True) if x.requires_grad]
        expected = self._autograd(
            [x for x, _ in depends],
            [d for _, d in depends],
            [*(self.tensors[x] for x in self.wrt), *self.cotangents.values()],
        )
        for name, value in zip(wrt, expected, strict=True):
            _assert_close(given[second[name]], value, rtol, f"second order, {name}")

    def run_without_fused(
        self, model: onnx.ModelProto, cotangents: Mapping[str, np.ndarray], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Run the standard operators of a float64 `model`; the fused node's outputs come from PyTorch."""
        graph = model.graph
        (fused,) = (
            node for node in graph.node if node.op_type == self.op_type and node.domain == self.domain
        )
        results = {
            name: _array(self.results[i])
            for i, name in enumerate(fused.output)
            if name and i < len(self.results) and self.results[i] is not None
        }
        graph.node.remove(fused)
        kept = [output for output in graph.output if output.name in wanted]
        del graph.output[:]
        graph.output.extend(kept)
        graph.input.extend(_info(name, array) for name, array in results.items())
        return evaluator(model)({**self.fed(np.float64), **cotangents, **results})


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    element_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, element_type, array.shape)


def _element_type(result: Any, dtype: type) -> int:
    if result is None:
        return 0
    if result.dtype == torch.float64:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return int(onnx.helper.np_dtype_to_tensor_dtype(_array(result).dtype))


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().numpy())


def _assert_close(actual: np.ndarray, expected: Any, tolerance: float, what: str) -> None:
    array = _array(expected)
    assert actual.shape == array.shape, what
    scale = max(1.0, float(np.abs(array).max(initial=0.0)))
    np.testing.assert_allclose(actual, array, rtol=tolerance, atol=tolerance * scale, err_msg=what)
