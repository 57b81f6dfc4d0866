"""What is inferred of shapes where onnx's own inference is wrong."""

from __future__ import annotations

import onnx
import pytest

from onnx_grad.prepare.infer import infer
from tests.graphs import parse

Shape = list[int | str] | None


def shape_of(model: onnx.ModelProto, name: str) -> Shape:
    (value,) = [v for v in (*model.graph.value_info, *model.graph.output) if v.name == name]
    tensor = value.type.tensor_type
    return [d.dim_param or d.dim_value for d in tensor.shape.dim] if tensor.HasField("shape") else None


def attention(q: str, k: str, v: str, past: str = "", attributes: str = "") -> onnx.ModelProto:
    """A node with all outputs, of which onnx's own inference has noted the shapes."""
    names = ", , past_key, past_value" if past else ""
    given = f", float[{past}] past_key, float[{past}] past_value" if past else ""
    return onnx.shape_inference.infer_shapes(
        parse(
            f"g (float[{q}] q, float[{k}] k, float[{v}] v{given}) => (float z) "
            f"{{ y, pk, pv, scores = Attention {attributes}(q, k, v{names}) z = Neg(y) }}",
            opset=23,
        )
    )


CASES: dict[str, tuple[onnx.ModelProto, dict[str, Shape]]] = {
    "static": (
        attention("2,4,3,8", "2,2,5,8", "2,2,5,6"),
        {"y": [2, 4, 3, 6], "pk": [2, 2, 5, 8], "pv": [2, 2, 5, 6], "scores": [2, 4, 3, 5]},
    ),
    "symbols": (attention("B,H,S,D", "B,G,T,D", "B,G,T,E"), {"scores": ["B", "H", "S", "T"]}),
    "packed symbols": (
        attention("B,S,D", "B,T,D", "B,T,24", attributes="<q_num_heads = 4, kv_num_heads = 2> "),
        {"y": ["B", "S", 48], "scores": ["B", 4, "S", "T"]},
    ),
    "past": (
        attention("2,4,3,8", "2,4,5,8", "2,4,5,8", past="2,4,2,8"),
        {"pk": [2, 4, 7, 8], "scores": [2, 4, 3, 7]},
    ),
    "past symbols": (attention("2,4,3,8", "2,4,5,8", "2,4,5,8", past="2,4,P,8"), {"y": [2, 4, 3, 8]}),
}


@pytest.mark.parametrize("case", CASES)
def test_attention(case: str) -> None:
    model, expected = CASES[case]
    inferred = infer(model)
    for name, shape in expected.items():
        assert shape_of(inferred, name) == shape, name


def test_attention_of_an_unknown_length_has_no_wrong_one() -> None:
    """Onnx's own inference says 0 for what it does not know."""
    model = attention("B,H,S,D", "B,H,T,D", "B,H,T,D", past="B,H,P,D")
    scores = shape_of(infer(model), "scores")
    assert scores is not None
    assert scores[:3] == ["B", "H", "S"]
    assert scores[3] != 0


@pytest.mark.parametrize("known", [True, False])
def test_attention_is_left_as_it_is(known: bool) -> None:
    model = attention("B,4,S,8", "B,4,T,8", "B,4,T,8")
    if not known:
        for value in model.graph.input:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = infer(model)
    assert list(inferred.graph.node) == list(model.graph.node)
    assert not inferred.functions
    assert [o.domain for o in inferred.opset_import] == [o.domain for o in model.opset_import]
    shape = shape_of(inferred, "scores")
    assert shape is None or len(shape) == 4


def test_what_follows_the_scores_is_inferred_from_the_right_ones() -> None:
    """Onnx's own inference leaves the past out, so that it finds the sum below contradictory."""
    model = parse(
        "g (float[2,4,3,8] q, float[2,4,5,8] k, float[2,4,2,8] p, float[7] w) => (float z) "
        "{ y, , , scores = Attention(q, k, k, , p, p) z = Add(scores, w) }",
        opset=23,
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert shape_of(infer(model), "z") == [2, 4, 3, 7]
