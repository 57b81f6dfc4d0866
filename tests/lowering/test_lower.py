"""`onnx_grad.lower` and the command: kinds of models, files, metadata, and the other transforms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner, Result

import onnx_grad
from onnx_grad.cli import app
from tests.graphs import operators, output_names, run
from tests.lowering.programs import program
from tests.pages import run_page

SQUARE = (
    "g (float[2] x) => (float[2] dx) <float[2] w = {3, 4}>"
    '{ p = Mul(x, w) y = Mul(p, x) [slope] dx = Gradient<xs=["x"], y="y">(x) }'
)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestKinds:
    def test_a_proto_gives_a_proto(self) -> None:
        model = onnx_grad.lower(program(SQUARE))
        assert isinstance(model, onnx.ModelProto)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(metadata["pkg.onnx_grad.lowered"]) == {"slope": "Gradient"}

    def test_an_ir_model_gives_an_ir_model_and_stays_as_it_was(self) -> None:
        model = ir.from_proto(program(SQUARE))
        before = ir.to_proto(model).SerializeToString()
        result = onnx_grad.lower(model)
        assert isinstance(result, ir.Model)
        assert all(v.shape is not None and v.dtype for node in result.graph for v in node.outputs)
        assert ir.to_proto(model).SerializeToString() == before

    def test_weights_in_external_files_stay_there(self, tmp_path: Path) -> None:
        model = program(SQUARE)
        weight = model.graph.initializer[0]
        weight.CopyFrom(onnx.numpy_helper.from_array(np.array([3, 4], np.float32), "w"))
        onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="w", size_threshold=0)
        result = onnx_grad.lower(tmp_path / "in.onnx", save_as=tmp_path / "out.onnx")
        saved = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        for proto in (result, saved):
            (location,) = [t for t in proto.graph.initializer if t.name == "w"]
            assert location.data_location == onnx.TensorProto.EXTERNAL
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "w"]
        values = run(onnx.load(tmp_path / "out.onnx"), {"x": [1, 2]})
        np.testing.assert_array_equal(values["dx"], [6, 16])

    def test_a_model_without_training_operators_comes_back_as_it_is(self) -> None:
        model = onnx_grad.lower(program("g (float x) => (float y) { y = Mul(x, x) }"))
        assert operators(model) == ["Mul"]
        assert [opset.domain for opset in model.opset_import] == [""]

    def test_nodes_that_were_added_say_what_they_serve(self) -> None:
        model = onnx_grad.lower(program(SQUARE))
        notes = [
            {e.key.rpartition(".")[2]: e.value for e in node.metadata_props} for node in model.graph.node
        ]
        assert {note.get("forward_node") for note in notes} >= {"y", "p"}


class TestOtherTransforms:
    """They lower first, also what is not on the way that the inputs of nodes show."""

    HIDDEN = (
        "g (float x, float w) => (float d) { p = Mul(w, w) y0 = Mul(p, x) y = Mul(y0, x)"
        'd = Gradient<xs=["x"], y="y">(x) }'
    )

    def test_vjp_by_what_a_gradient_does_not_read(self) -> None:
        model = onnx_grad.grad(program(self.HIDDEN), wrt="w")
        np.testing.assert_allclose(run(model, {"x": 3.0, "w": 2.0})["w_grad"], 2 * 2 * 2 * 3)

    def test_inspect_and_check(self) -> None:
        report = onnx_grad.inspect(program(self.HIDDEN))
        assert report.differentiable
        assert report.expanded == ["Gradient"]
        assert onnx_grad.check_gradients(program(self.HIDDEN)).passed

    def test_what_blocks_is_said(self) -> None:
        model = program('g (float x) => (float d) { y = custom.Odd(x) d = Gradient<xs=["x"], y="y">(x) }')
        with pytest.raises(onnx_grad.UnsupportedOpError, match="'y' \\(Odd\\)"):
            onnx_grad.vjp(model)


class TestCommand:
    def test_writes_the_model_and_tells_what_was_lowered(self, tmp_path: Path) -> None:
        onnx.save(program(SQUARE), tmp_path / "in.onnx")
        result = command("lower", tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert result.exit_code == 0
        assert "1 training operators lowered" in result.stdout.replace("\n", "")
        assert "slope" in result.stdout
        assert output_names(onnx.load(tmp_path / "out.onnx")) == ["dx"]

    def test_json(self, tmp_path: Path) -> None:
        onnx.save(program(SQUARE), tmp_path / "in.onnx")
        result = command("lower", tmp_path / "in.onnx", tmp_path / "out.onnx", "--json")
        assert json.loads(result.stdout)["lowered"] == {"slope": "Gradient"}

    def test_bad_input_exits_with_2_and_writes_nothing(self, tmp_path: Path) -> None:
        onnx.save(program(SQUARE.replace('y="y"', 'y="z"')), tmp_path / "in.onnx")
        result = command("lower", tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert result.exit_code == 2
        assert "no tensor named 'z'" in result.stderr
        assert not (tmp_path / "out.onnx").exists()
        assert command("lower", tmp_path / "in.onnx", tmp_path / "in.onnx").exit_code == 2

    def test_is_listed(self) -> None:
        assert "lower " in command("--help").stdout


def test_the_documentation_runs() -> None:
    names = run_page("lowering.md").names
    np.testing.assert_allclose(np.ravel(names["w"]), [1, 2, 3], rtol=1e-2)
    assert callable(names["training_step"])
