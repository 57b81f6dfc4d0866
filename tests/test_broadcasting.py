"""Add, and every way it can broadcast.

With a cotangent of ones, the gradient of an operand counts how often each of its elements was repeated. That
number is worked out here from the shapes alone.
"""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, single_node, with_shapes

Shape = tuple[int, ...]

SHAPES: list[tuple[Shape, Shape]] = [
    ((), ()),
    ((3,), (3,)),
    ((3,), ()),
    ((), (2, 3)),
    ((1,), ()),
    ((), (1, 1)),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 3), (1, 3)),
    ((2, 3), (2, 1)),
    ((2, 3), (1, 1)),
    ((2, 1), (1, 3)),
    ((2, 3, 4), (2, 1, 4)),
    ((1, 3, 1), (2, 1, 4)),
    ((3, 1), (2, 1, 4)),
    ((2, 1, 2, 1, 2, 1), (1, 2, 1, 2, 1, 2)),
    ((2, 1, 1, 2, 1, 2), (2, 1, 1)),
    ((0,), (1,)),
    ((0, 3), (1, 3)),
    ((0, 3), (3,)),
    ((2, 0, 1), (1, 1, 4)),
    ((1, 1), (1,)),
    ((1,), (1, 1, 1)),
]


def repetitions(shape: Shape, other: Shape) -> int:
    """How often each element of an operand of `shape` is repeated when it meets one of shape `other`."""
    result = np.broadcast_shapes(shape, other)
    aligned = (1,) * (len(result) - len(shape)) + shape
    return math.prod(r for own, r in zip(aligned, result, strict=True) if own == 1)


def add_model(a: Shape, b: Shape) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    inputs = {n: np.asarray(generator.standard_normal(s)) for n, s in (("a", a), ("b", b))}
    return single_node("Add", inputs, outputs=["z"]), inputs


def run_float32(model: onnx.ModelProto, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_gradient_counts_repetitions(a: Shape, b: Shape, knowledge: str) -> None:
    model, inputs = add_model(a, b)
    ones = np.ones(np.broadcast_shapes(a, b))
    result = gradients(with_shapes(model, knowledge), inputs, {"z": ones}, ["a", "b"])
    np.testing.assert_array_equal(result["a"], np.full(a, repetitions(a, b)))
    np.testing.assert_array_equal(result["b"], np.full(b, repetitions(b, a)))


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_random_shapes_against_finite_differences(data: st.DataObject) -> None:
    result = data.draw(st.lists(st.integers(0, 3), max_size=6), label="result")
    a, b = (
        tuple(
            1 if data.draw(st.booleans()) and result[i] != 0 else result[i]
            for i in range(data.draw(st.integers(0, len(result))), len(result))
        )
        for _ in "ab"
    )
    model, inputs = add_model(a, b)
    check(model, inputs, shapes=[data.draw(st.sampled_from(SHAPE_KNOWLEDGE))])


def test_operand_used_twice() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[N] z) { z = Add(x, x) }'
    )
    values = run_float32(onnx_grad.vjp(model), x=np.zeros(3, np.float32), z_grad=np.ones(3, np.float32))
    np.testing.assert_array_equal(values["x_grad"], np.full(3, 2, np.float32))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("N,3", "N,3", []),
        ("3", "3", []),
        ("N,3", "3", ["ReduceSum"]),
        ("N,3", "N,1", ["ReduceSum"]),
        ("N,3", "", ["ReduceSum"]),
        ("N,M,3", "M,1", ["ReduceSum", "Reshape"]),
        ("N,M,L,3", "M,L,1", ["ReduceSum", "Reshape", "Shape"]),
        ("2,4,3", "4,1", ["ReduceSum", "Reshape"]),
    ],
)
def test_only_the_nodes_that_are_needed(a: str, b: str, expected: list[str]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        f"g (float[{a}] a, float{b and f'[{b}]'} b) => (float[{a}] z) {{ z = Add(a, b) }}"
    )
    added = [n.op_type for n in onnx_grad.vjp(model).graph.node if n.op_type not in ("Add", "Identity")]
    assert sorted(added) == sorted(expected)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (1, 3), (3, 1), (1, 1)])
def test_unequal_symbols_that_turn_out_to_be_one(n: int, m: int) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        "g (float[N] a, float[M] b) => (float[K] z) { z = Add(a, b) }"
    )
    values = run_float32(
        onnx_grad.vjp(model),
        a=np.zeros(n, np.float32),
        b=np.zeros(m, np.float32),
        z_grad=np.ones(max(n, m), np.float32),
    )
    np.testing.assert_array_equal(values["a_grad"], np.full(n, max(n, m) / n, np.float32))
    np.testing.assert_array_equal(values["b_grad"], np.full(m, max(n, m) / m, np.float32))


def test_one_file_serves_every_rank() -> None:
    model, _ = add_model((1,), (1,))
    transformed = onnx_grad.vjp(with_shapes(model, "unknown"))
    session = onnxruntime.InferenceSession(transformed.SerializeToString())
    for a, b in SHAPES:
        ones = np.ones(np.broadcast_shapes(a, b))
        _, da, db = session.run(None, {"a": np.zeros(a), "b": np.zeros(b), "z_grad": ones})
        np.testing.assert_array_equal(da, np.full(a, repetitions(a, b)))
        np.testing.assert_array_equal(db, np.full(b, repetitions(b, a)))


OLD_FORMS: list[tuple[Shape, Shape, dict[str, int]]] = [
    ((2, 3, 4, 5), (2, 3, 4, 5), {}),
    ((2, 3, 4, 5), (5,), {"broadcast": 1}),
    ((2, 3, 4, 5), (4, 5), {"broadcast": 1}),
    ((2, 3, 4, 5), (3, 4), {"broadcast": 1, "axis": 1}),
    ((2, 3, 4, 5), (2,), {"broadcast": 1, "axis": 0}),
    ((2, 3, 4, 5), (3,), {"broadcast": 1, "axis": 1}),
    ((2, 3, 4, 5), (1, 1), {"broadcast": 1}),
    ((2, 3), (), {"broadcast": 1}),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(("a", "b", "attributes"), OLD_FORMS, ids=str)
def test_opset_6_aligns_at_an_axis(
    op_type: str, a: Shape, b: Shape, attributes: dict[str, int], symbolic: bool
) -> None:
    """The second operand is stretched to the right of `axis` as well as to the left."""
    generator = np.random.default_rng(0)
    inputs = {n: generator.uniform(1, 2, s).astype(np.float32) for n, s in (("a", a), ("b", b))}
    node = onnx.helper.make_node(op_type, ["a", "b"], ["z"], **attributes)

    def dims(shape: Shape, name: str) -> list[int | str]:
        return [f"{name}{i}" if symbolic else d for i, d in enumerate(shape)]

    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, dims(x.shape, n))
        for n, x in inputs.items()
    ]
    output = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, dims(a, "a"))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", infos, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 6)],
        ir_version=4,
    )
    axis = attributes.get("axis", len(a) - len(b))
    aligned = b + (1,) * (len(a) - axis - len(b)) if attributes.get("broadcast") else b
    stretched = inputs["b"].reshape(aligned)
    numpy_operator = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op_type]
    values = run_float32(onnx_grad.vjp(model), **inputs, z_grad=np.ones(a, np.float32))
    np.testing.assert_allclose(values["z"], numpy_operator(inputs["a"], stretched), rtol=1e-6)
    assert values["a_grad"].shape == a
    assert values["b_grad"].shape == b
    db = {
        "Add": np.ones(a),
        "Sub": -np.ones(a),
        "Mul": inputs["a"],
        "Div": -inputs["a"] / stretched**2,
    }[op_type]
    full = (1,) * (len(a) - len(aligned)) + aligned
    summed = tuple(i for i in range(len(a)) if full[i] != a[i])
    expected = db.astype(np.float64).sum(axis=summed).reshape(b)
    np.testing.assert_allclose(values["b_grad"], expected, rtol=1e-5)


def test_every_pair_of_small_shapes() -> None:
    """All shapes of ranks 0 to 3 over sizes 0, 1 and 2, from one file of unknown rank."""
    model, _ = add_model((1,), (1,))
    session = onnxruntime.InferenceSession(onnx_grad.vjp(with_shapes(model, "unknown")).SerializeToString())
    shapes = [s for rank in range(4) for s in itertools.product((0, 1, 2), repeat=rank)]
    for a, b in itertools.product(shapes, shapes):
        try:
            result = np.broadcast_shapes(a, b)
        except ValueError:
            continue
        _, da, db = session.run(None, {"a": np.zeros(a), "b": np.zeros(b), "z_grad": np.ones(result)})
        np.testing.assert_array_equal(da, np.full(a, repetitions(a, b)))
        np.testing.assert_array_equal(db, np.full(b, repetitions(b, a)))
