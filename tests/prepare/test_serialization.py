"""What is written of a model is what onnx_ir writes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad.prepare.serialization import without_initializers
from tests.graphs import parse

MODELS = sorted(Path("models").glob("*.onnx"))


def written_by_onnx_ir(model: ir.Model) -> onnx.ModelProto:
    model.graph.initializers.clear()
    return ir.to_proto(model)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_and_their_gradients(path: Path) -> None:
    model = onnx_grad.vjp(ir.load(path))
    assert without_initializers(model, annotated=True) == written_by_onnx_ir(model)


@pytest.mark.parametrize(
    "graph",
    [
        "g (float x, float16[N] y) => (float z, float16[M] w) { z = Neg (x) w = Neg (y) }",
        "g (seq(float[N]) x, optional(float[2]) y) => (int64 n) { n = SequenceLength (x) }",
        "g (float x, bool c) => (float y) "
        "{ y = If(c) <then_branch = t () => (a) { a = Neg (x) }, else_branch = e () => (b) { b = Abs(x) }> }",
        "g (float[2] x) => (float[2] y) <float[2] h, float[?] k> { h, = Dropout(x) k = Neg (h) y = Neg (k) }",
    ],
    ids=["ranks", "sequences", "bodies", "results"],
)
def test_kinds_of_values(graph: str) -> None:
    model = ir.from_proto(parse(graph, ir_version=10))
    assert without_initializers(model, annotated=True) == written_by_onnx_ir(model)


def annotate_for_quantization(proto: onnx.ModelProto) -> None:
    for name in ("x", "h", "y"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")


def remark_on_values(proto: onnx.ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        value.doc_string = "what it is"
        value.metadata_props.add(key="unit", value="m")
        value.type.denotation = "IMAGE"
        value.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"


def remark_on_the_model(proto: onnx.ModelProto) -> None:
    proto.doc_string = proto.graph.doc_string = proto.graph.node[0].doc_string = "what it does"
    proto.producer_name, proto.domain, proto.model_version = "tests", "org", 3
    proto.metadata_props.add(key="author", value="us")
    proto.graph.metadata_props.add(key="part", value="all")


@pytest.mark.parametrize("change", [annotate_for_quantization, remark_on_values, remark_on_the_model])
def test_remarks(change: Callable[[onnx.ModelProto], None]) -> None:
    proto = parse(
        "g (float[N,2] x) => (float[N,2] y) <float[N,2] h, float s = {2}> { h = Mul (x, s) y = Neg (h) }",
        ir_version=10,
    )
    change(proto)
    model = ir.from_proto(proto)
    written = without_initializers(model, annotated=True)
    assert written == written_by_onnx_ir(model)
    assert len(written.graph.quantization_annotation) == len(proto.graph.quantization_annotation)


def test_annotations_for_quantization_stay_in_the_gradient() -> None:
    proto = parse("g (float[N] x) => (float[N] y) { h = Neg (x) y = Tanh (h) }")
    annotate_for_quantization(proto)
    gradient = onnx_grad.vjp(proto)
    assert [a.tensor_name for a in gradient.graph.quantization_annotation] == ["x", "h", "y"]
