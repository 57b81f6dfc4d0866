"""An independent oracle: central differences in float64 of the forward model itself.

`check(model, inputs)` transforms the model three times, with static shapes, with symbolic ones and with none
at all, runs each gradient graph and compares every gradient with finite differences, for a random
cotangent. It knows nothing of the rules.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

import onnx_grad
from tests.recurrence import as_scans, needs_scans

Arrays = Mapping[str, np.ndarray]
SHAPE_KNOWLEDGE = ("static", "symbolic", "unknown")


def single_node(
    op_type: str,
    inputs: Mapping[str, np.ndarray | None],
    *,
    outputs: int | Sequence[str] = 1,
    opset: int = 18,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; an input that is `None` is left out (an empty name)."""
    names = [f"y{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
    node = onnx.helper.make_node(
        op_type,
        [n if a is not None else "" for n, a in inputs.items()],
        names,
        domain=domain,
        **attributes,
    )
    return graph_model([node], {n: a for n, a in inputs.items() if a is not None}, names, opset=opset)


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    outputs: Iterable[str],
    *,
    initializers: Arrays | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model of some nodes, its input types taken from arrays and its output types inferred."""
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    weights = [onnx.numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()]
    graph = onnx.helper.make_graph(nodes, "case", infos, [], weights)
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    del model.graph.output[:]
    model.graph.output.extend(known[name] for name in outputs if name)
    return model


def with_shapes(model: onnx.ModelProto, knowledge: str) -> onnx.ModelProto:
    """The model with its input shapes as they are, with a symbol for every dimension, or without shapes.

    Nothing is said about outputs or intermediate values in the last two.
    """
    if knowledge == "static":
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for position, value in enumerate(copy.graph.input):
        tensor = value.type.tensor_type
        rank = len(tensor.shape.dim)
        tensor.ClearField("shape")
        if knowledge == "symbolic":
            for axis in range(rank):
                tensor.shape.dim.add().dim_param = f"{value.name}_{position}_{axis}"
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def evaluator(model: onnx.ModelProto) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Runs the model with ONNX Runtime, or with onnx's reference where ONNX Runtime lacks a kernel."""
    model = as_scans(model) if needs_scans(model) else model
    names = [output.name for output in model.graph.output]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (
        onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
        onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    ):
        reference = ReferenceEvaluator(model)
        return lambda inputs: dict(zip(names, reference.run(None, dict(inputs)), strict=True))
    return lambda inputs: dict(zip(names, session.run(None, dict(inputs)), strict=True))


def numerical_gradient(
    run: Callable[[Arrays], dict[str, np.ndarray]],
    inputs: Arrays,
    wrt: str,
    cotangents: Arrays,
    step: float = 1e-4,
) -> np.ndarray:
    """d/dx Σ⟨dy, y⟩ by fourth-order central differences, coordinate by coordinate."""
    point = inputs[wrt]
    result = np.zeros(point.shape, dtype=np.float64)

    def objective(index: tuple[int, ...], offset: float) -> float:
        moved = point.copy()
        moved[index] += offset
        values = run({**inputs, wrt: moved})
        return sum(float((values[y] * dy).sum()) for y, dy in cotangents.items())

    for index in np.ndindex(point.shape):
        near = objective(index, step) - objective(index, -step)
        far = objective(index, 2 * step) - objective(index, -2 * step)
        result[index] = (8 * near - far) / (12 * step)
    return result


def check_tangents(
    model: onnx.ModelProto,
    inputs: Arrays,
    cotangents: Arrays,
    gradients: Arrays,
    rtol: float = 1e-6,
    atol: float = 1e-7,
) -> None:
    """Assert that tangents ẏ = J·ẋ fit the gradients Jᵀ·dy: Σ⟨dy, ẏ⟩ = Σ⟨Jᵀ·dy, ẋ⟩ for a random ẋ.

    Args:
        model: The forward model.
        inputs: Where to differentiate.
        cotangents: The cotangents dy of its outputs.
        gradients: The gradients Jᵀ·dy of its inputs.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """
    pushed = quiet_jvp(model, list(gradients), list(cotangents))
    into, out = noted_names(pushed, "tangents"), noted_names(pushed, "output_tangents")
    generator = np.random.default_rng(1)
    v = {x: np.asarray(generator.standard_normal(dx.shape), inputs[x].dtype) for x, dx in gradients.items()}
    values = evaluator(pushed)({**inputs, **{into[x]: tangent for x, tangent in v.items()}})
    for y, dy in cotangents.items():
        tangent = values[out[y]]
        assert (tangent.shape, tangent.dtype) == (dy.shape, dy.dtype), y
    forward = [values[out[y]].astype(float) * dy for y, dy in cotangents.items()]
    backward = [dx.astype(float) * v[x] for x, dx in gradients.items()]
    scale = sum(float(np.abs(terms).sum()) for terms in (*forward, *backward))
    actual, expected = (sum(float(terms.sum()) for terms in side) for side in (forward, backward))
    assert abs(actual - expected) <= rtol * scale + atol * (
        1 + sum(float(np.abs(t).sum()) for t in v.values())
    )


def assert_dual(model: onnx.ModelProto, inputs: Arrays, rtol: float = 1e-9) -> None:
    """⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩ at `inputs` for random u and v, in the precision of the model."""
    wrt = [x for x, a in inputs.items() if a.dtype.kind == "f"]
    pulled = quiet_vjp(model, wrt)
    seeds, names = given_names(pulled)
    generator = np.random.default_rng(0)
    values = evaluator(model)(inputs)
    u = {y: np.asarray(generator.standard_normal(values[y].shape), values[y].dtype) for y in seeds}
    gradients = evaluator(pulled)({**inputs, **{seeds[y]: u[y] for y in u}})
    check_tangents(model, inputs, u, {x: gradients[names[x]] for x in wrt}, rtol, rtol)


def gradients(
    model: onnx.ModelProto, inputs: Arrays, cotangents: Arrays, wrt: Sequence[str], **options: Any
) -> dict[str, np.ndarray]:
    """The gradients of `wrt` by the graph that `onnx_grad.vjp` makes, checked by onnx's checker first."""
    transformed = quiet_vjp(model, list(wrt), list(cotangents), **options)
    if _is_valid(model):
        onnx.checker.check_model(transformed, full_check=True)
    cotangent_names, gradient_names = given_names(transformed)
    seeds = {cotangent_names[y]: dy for y, dy in cotangents.items()}
    values = evaluator(transformed)({**inputs, **seeds})
    return {x: values[gradient_names[x]] for x in wrt}


def quiet_vjp(model: onnx.ModelProto, *arguments: Any, **options: Any) -> onnx.ModelProto:
    """`onnx_grad.vjp`, where gradients without a path are zeros and no surprise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnx_grad.NoPathWarning)
        return onnx_grad.vjp(model, *arguments, **options)


def quiet_jvp(model: onnx.ModelProto, *arguments: Any, **options: Any) -> onnx.ModelProto:
    """`onnx_grad.jvp`, where tangents without a path are zeros and no surprise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnx_grad.NoPathWarning)
        return onnx_grad.jvp(model, *arguments, **options)


def given_names(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the cotangent inputs and of the gradient outputs, from the model's metadata."""
    return noted_names(model, "cotangents"), noted_names(model, "gradients")


def noted_names(model: onnx.ModelProto, key: str) -> dict[str, str]:
    """What a transform noted in the model's metadata, such as the names of `"tangents"`."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    names: dict[str, str] = json.loads(metadata[f"pkg.onnx_grad.{key}"])
    return names


def _is_valid(model: onnx.ModelProto) -> bool:
    """Whether onnx's checker accepts the forward model; it insists on the shapes of inputs and outputs."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError:
        return False
    return True


def check(
    model: onnx.ModelProto,
    inputs: Arrays,
    *,
    wrt: Sequence[str] | None = None,
    of: Sequence[str] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-7,
    shapes: Sequence[str] = SHAPE_KNOWLEDGE,
    step: float = 1e-4,
    second_order: bool = False,
    tangents: bool = True,
    seed: int = 0,
) -> None:
    """Assert that the gradients of a float64 model equal finite differences, whatever is known of shapes.

    Args:
        model: The forward model, in float64.
        inputs: Where to differentiate.
        wrt: Inputs to differentiate with respect to; all float64 inputs when left out.
        of: Outputs to differentiate; all float64 outputs when left out.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        shapes: What the transform is told of the shapes, one check each.
        step: Step of the differences.
        second_order: Whether to differentiate the gradient graph again and check that too.
        tangents: Whether to check `jvp` against the gradients as well.
        seed: Seed of the cotangents.
    """
    run = evaluator(model)
    values = run(inputs)
    generator = np.random.default_rng(seed)
    outputs = [y for y, v in values.items() if v.dtype == np.float64] if of is None else list(of)
    cotangents = {y: np.asarray(generator.standard_normal(values[y].shape)) for y in outputs}
    names = [x for x, a in inputs.items() if a.dtype == np.float64] if wrt is None else list(wrt)
    expected = {x: numerical_gradient(run, inputs, x, cotangents, step) for x in names}
    for knowledge in shapes:
        actual = gradients(with_shapes(model, knowledge), inputs, cotangents, names)
        for x in names:
            assert actual[x].dtype == inputs[x].dtype
            assert actual[x].shape == inputs[x].shape, f"{x}, {knowledge} shapes"
            np.testing.assert_allclose(
                actual[x], expected[x], rtol=rtol, atol=atol, err_msg=f"{x}, {knowledge} shapes"
            )
    if tangents:
        # One of them, which differs between models: tangents follow from the rules that were checked.
        knowledge = shapes[model.ByteSize() % len(shapes)]
        check_tangents(with_shapes(model, knowledge), inputs, cotangents, expected, rtol, atol)
    if second_order:
        gradient_model = quiet_vjp(model, names, outputs)
        cotangent_names, gradient_names = given_names(gradient_model)
        check(
            gradient_model,
            {**inputs, **{cotangent_names[y]: dy for y, dy in cotangents.items()}},
            wrt=[*names, *cotangent_names.values()],
            of=list(gradient_names.values()),
            rtol=max(rtol, 1e-5),
            atol=max(atol, 1e-6),
            shapes=shapes,
            step=step,
            tangents=tangents,
            seed=seed + 1,
        )
