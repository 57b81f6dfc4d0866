"""Types and shapes behind ONNX Runtime's own operators, of which onnx's inference knows nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.prepare import prepare
from onnx_grad.prepare.contrib import infer_shapes
from tests.oracle import evaluator, given_names

INPUTS = (
    "float[N,S,8] x, float[8,24] w, float[8,5] u, float[8] b, float[8,8] square, float[N,2,P,4] past, "
    "float[2,N,2,P,4] both, int32[N] lengths, int32[N,S] words, float[11,8] table, float[N,C,6,6] image, "
    "float[4,C,3,3] filters, float[3,2,5,8] moved, uint8[5,1,8] levels, float[5,1] scales"
)

# A node of x and the others, and the types of its outputs.
CASES = [
    ("Gelu(x)", ["float[N,S,8]"]),
    ("BiasGelu(x, b)", ["float[N,S,8]"]),
    ("BiasSplitGelu(x, b)", ["float[N,S,4]"]),
    ("FusedMatMul(x, u)", ["float[N,S,5]"]),
    ("FusedMatMul<transA = 1>(x, x)", ["float[N,8,8]"]),
    ("FusedMatMul<transB = 1>(x, x)", ["float[N,S,S]"]),
    ("FusedMatMul<transBatchA = 1>(moved, moved)", ["float"]),
    ('FusedGemm<transA = 1, activation = "Relu">(u, square)', ["float[5,8]"]),
    ('FusedConv<strides = [2, 2], activation = "Relu">(image, filters)', ["float[N,4,2,2]"]),
    ("SkipLayerNormalization(x, x, b)", ["float[N,S,8]", "float[N,S,1]", "float[N,S,1]", "float[N,S,8]"]),
    ("EmbedLayerNormalization(words, words, table, table, table, b, b)", ["float[N,S,8]", "int32[N]"]),
    ("Attention<num_heads = 2>(x, w)", ["float[N,S,8]", "float[2,N,2,S,4]"]),
    ("Attention<num_heads = 2>(x, w, , , both)", ["float[N,S,8]", "float[2,N,2,?,4]"]),
    ("Attention<num_heads = 2, qkv_hidden_sizes = [8, 8, 8]>(x, w)", ["float[N,S,8]"]),
    ("MultiHeadAttention<num_heads = 2>(x, x, x, , , , past, past)", ["float[N,S,?]", "float[N,2,?,4]"]),
    (
        "GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(x, x, x, past, past, lengths, lengths)",
        ["float[N,S,8]", "float[N,2,?,4]", "float[N,2,?,4]"],
    ),
    (
        "GroupQueryAttention<num_heads = 2, kv_num_heads = 1>(x, , , , , lengths, lengths)",
        ["float[N,S,4]", "float[N,1,S,2]"],
    ),
    ("MatMulNBits<K = 8, N = 5, block_size = 16>(x, levels, scales)", ["float[N,S,5]"]),
    ("Inverse(square)", ["float[8,8]"]),
    ("Range(b, b)", ["float[?]"]),
    ("Unknown(x)", [""]),
]


def _model(node: str, outputs: int) -> onnx.ModelProto:
    names = ", ".join(f"y{index}" for index in range(outputs))
    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]> '
        f"g ({INPUTS}) => (float[M] end) {{ {names} = com.microsoft.{node} end = Relu(b) }}"
    )


def _type_of(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return kind
    dims = [d.dim_value or ("?" if "unk" in d.dim_param else d.dim_param) for d in tensor.shape.dim]
    return f"{kind}[{','.join(map(str, dims))}]"


@pytest.mark.parametrize(("node", "types"), CASES, ids=str)
def test_what_follows_from_the_operands_is_inferred(node: str, types: list[str]) -> None:
    model = _model(node, len(types))
    before = model.SerializeToString()
    inferred = infer_shapes(model, strict_mode=True, data_prop=True)
    known = {value.name: _type_of(value) for value in inferred.graph.value_info}
    assert [known.get(f"y{index}", "") for index in range(len(types))] == types
    assert model.SerializeToString() == before
    assert [list(model.functions), list(inferred.functions)] == [[], []]
    assert [node.overload for node in inferred.graph.node] == ["", ""]


def test_operands_that_do_not_fit_leave_the_types_unknown() -> None:
    inferred = infer_shapes(_model("FusedMatMul(u, u)", 1), strict_mode=True)
    assert [value.name for value in inferred.graph.value_info] == []


def test_a_function_of_the_model_stays_what_it_is() -> None:
    model = _model("Gelu(x)", 1)
    text = '<domain: "com.microsoft", opset_import: ["": 18]> Gelu (a) => (b) { b = Shape(a) }'
    model.functions.append(onnx.parser.parse_function(text))
    inferred = infer_shapes(model, strict_mode=True, data_prop=True)
    assert [_type_of(value) for value in inferred.graph.value_info] == ["int64[3]"]
    assert len(inferred.functions) == 1


@pytest.mark.parametrize("opset", [12, 17, 18])
@pytest.mark.parametrize("op_type", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_normalization_that_only_onnx_runtime_has_in_the_default_domain(op_type: str, opset: int) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["": {opset}]> g (float[N,4] x, float[4] s) => (float[N,4] y) {{'
        f" z = {op_type}<epsilon = 0.125>(x, s) y = Softmax<axis = 1>(z) }}"
    )
    transformed = onnx_grad.vjp(model, "x")
    seeds, gradients = given_names(transformed)
    x, s = np.array([[1, 2, 4, 8]], np.float32), np.ones(4, np.float32)
    values = evaluator(transformed)({"x": x, "s": s, seeds["y"]: np.eye(1, 4, dtype=np.float32)})
    differences = [
        (evaluator(model)({"x": x + h, "s": s})["y"] - evaluator(model)({"x": x - h, "s": s})["y"])[0, 0]
        / 0.02
        for h in 0.01 * np.eye(4, dtype=np.float32)
    ]
    np.testing.assert_allclose(values[gradients["x"]][0], differences, atol=1e-3)


def test_names_that_the_optimizer_cannot_give_twice_are_given_up() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2,3] x) => (float[6] y) '
        "<int64[1] gemm_output_shape = {6}, int64[1] gemm_output_shape_saved = {0}> {"
        " y = Reshape(x, gemm_output_shape) }"
    )
    names = set(prepare(model).model.graph.initializers)
    assert "gemm_output_shape" not in names
    assert [t.name for t in model.graph.initializer] == ["gemm_output_shape", "gemm_output_shape_saved"]
