"""The command line: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import onnx_grad
from models import FOLDER
from onnx_grad.cli import app
from tests.graphs import input_names, output_names, parse

ADD = str(FOLDER / "broadcast_add.onnx")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A model with two nodes that nothing is known of."""
    path = tmp_path / "blocked.onnx"
    onnx.save(
        parse("g (float[N] x) => (float[N] y) { [one] h = custom.Odd (x) [two] y = custom.Even (h) }"), path
    )
    return path


class TestTransforming:
    def test_vjp_writes_the_model_and_tells_the_names(self, tmp_path: Path) -> None:
        out = tmp_path / "out.onnx"
        result = command("vjp", ADD, out, "--wrt", "b")
        assert result.exit_code == 0
        assert "input z_grad" in result.stdout
        assert "output b_grad" in result.stdout
        assert output_names(onnx.load(out)) == ["z", "b_grad"]

    def test_json(self, tmp_path: Path) -> None:
        summary = json.loads(command("vjp", ADD, tmp_path / "out.onnx", "--json").stdout)
        assert summary["cotangents"] == {"z": "z_grad"}
        assert summary["gradients"] == {"a": "a_grad", "b": "b_grad"}
        assert summary["forward_nodes"] == 1
        assert summary["backward_nodes"] == 2

    def test_grad_and_parameters(self, tmp_path: Path) -> None:
        model = parse("g (float[2] x) => (float y) <float[2] w = {1, 2}> { y = MatMul(x, w) }")
        onnx.save(model, tmp_path / "in.onnx")
        out = tmp_path / "out.onnx"
        assert command("grad", tmp_path / "in.onnx", out, "--wrt", "parameters").exit_code == 0
        assert output_names(onnx.load(out)) == ["y", "w_grad"]

    @pytest.mark.parametrize(
        ("name", "inputs", "outputs"),
        [
            ("jvp", ["a", "b", "a_tangent", "b_tangent"], ["z", "z_tangent"]),
            ("jacobian", ["a", "b"], ["z", "z_jacobian_a", "z_jacobian_b"]),
        ],
    )
    def test_derivatives(self, name: str, inputs: list[str], outputs: list[str], tmp_path: Path) -> None:
        result = command(name, ADD, tmp_path / "out.onnx")
        assert result.exit_code == 0
        for added in (*inputs[2:], *outputs[1:]):
            assert added in result.stdout
        model = onnx.load(tmp_path / "out.onnx")
        assert (input_names(model), output_names(model)) == (inputs, outputs)

    def test_derivatives_of_a_scalar(self, tmp_path: Path) -> None:
        energy = FOLDER / "energy.onnx"
        assert command("hvp", energy, tmp_path / "hvp.onnx").exit_code == 0
        assert output_names(onnx.load(tmp_path / "hvp.onnx")) == ["energy", "positions_hvp"]
        summary = json.loads(command("hessian", energy, tmp_path / "hessian.onnx", "--json").stdout)
        (by_name,) = summary["hessians"]["energy"].values()
        assert by_name == {"positions": "energy_hessian_positions_positions"}
        assert command("hvp", ADD, tmp_path / "out.onnx").exit_code == 2

    def test_mode_of_a_jacobian(self, tmp_path: Path) -> None:
        files = [tmp_path / f"{mode}.onnx" for mode in ("reverse", "forward")]
        for file in files:
            assert command("jacobian", ADD, file, "--wrt", "b", "--mode", file.stem).exit_code == 0
        assert len({len(onnx.load(file).graph.node) for file in files}) == 2

    def test_several_names(self, tmp_path: Path) -> None:
        out = tmp_path / "out.onnx"
        assert command("vjp", ADD, out, "--wrt", "b", "--wrt", "a").exit_code == 0
        assert output_names(onnx.load(out)) == ["z", "b_grad", "a_grad"]

    def test_a_gradient_without_a_path_is_warned_of(self, tmp_path: Path) -> None:
        onnx.save(parse("g (float x, float u) => (float y) { y = Mul(x, x) }"), tmp_path / "in.onnx")
        result = command("vjp", tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert result.exit_code == 0
        assert "no differentiable path leads from 'u'" in result.stderr


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nowhere.onnx", "out.onnx"), "No such file"),
            ((ADD, "out.onnx", "--wrt", "A"), "no tensor named 'A'"),
            ((ADD, "nowhere/out.onnx"), "does not exist"),
        ],
    )
    def test_exits_with_2_and_writes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = command("vjp", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stdout == ""
        assert list(tmp_path.iterdir()) == []

    def test_as_json(self) -> None:
        result = command("inspect", "nowhere.onnx", "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout)["error"]["kind"] == "ModelError"

    def test_the_model_itself_is_not_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "in.onnx"
        path.write_bytes(Path(ADD).read_bytes())
        result = command("vjp", path, path)
        assert result.exit_code == 2
        assert "would be lost" in result.stderr
        assert path.read_bytes() == Path(ADD).read_bytes()

    def test_unsupported_operators_are_all_named(self, blocked: Path, tmp_path: Path) -> None:
        result = command("vjp", blocked, tmp_path / "out.onnx")
        assert result.exit_code == 2
        assert "'one' (Odd)" in result.stderr
        assert "'two' (Even)" in result.stderr
        assert not (tmp_path / "out.onnx").exists()

    @pytest.mark.parametrize("option", [("--dim", "batch"), ("--dim", "batch=x"), ("--range", "ids=3")])
    def test_assignments(self, option: tuple[str, str]) -> None:
        result = command("check", ADD, *option)
        assert result.exit_code == 2
        assert "write it like" in result.stderr


class TestInspect:
    def test_shows_rules(self) -> None:
        result = command("inspect", ADD)
        assert result.exit_code == 0
        assert "arithmetic" in result.stdout
        assert "Nothing blocks." in result.stdout

    def test_exits_with_1_and_shows_everything_that_blocks(self, blocked: Path) -> None:
        result = command("inspect", blocked)
        assert result.exit_code == 1
        assert "one" in result.stdout
        assert "two" in result.stdout
        report = json.loads(command("inspect", blocked, "--json").stdout)
        assert [b["node"] for b in report["blockers"]] == ["one", "two"]


class TestCheck:
    def test_passes(self, tmp_path: Path) -> None:
        plot = tmp_path / "v.png"
        result = command("check", ADD, "--dim", "batch=5", "--plot", plot)
        assert result.exit_code == 0
        assert plot.read_bytes().startswith(b"\x89PNG")

    def test_exits_with_1_when_a_gradient_is_wrong(self, tmp_path: Path) -> None:
        @onnx_grad.gradient("Twice", domain="custom")
        def twice(op, node, dy):
            return 3.0 * dy

        onnx.save(
            parse(
                "g (float[3] x) => (float[3] y) { y = custom.Twice (x) }",
                extra='<domain: "custom", opset_import: ["" : 18]> Twice (a) => (b) { b = Add(a, a) }',
            ),
            tmp_path / "in.onnx",
        )
        try:
            result = command("check", tmp_path / "in.onnx", "--json")
        finally:
            onnx_grad.registry.unregister("Twice", domain="custom")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["passed"] is False

    def test_given_inputs(self, tmp_path: Path) -> None:
        arrays = tmp_path / "x.npz"
        np.savez(arrays, a=np.zeros((2, 3), np.float32), b=np.ones(3, np.float32), label=np.ones(2))
        result = command("check", ADD, "--inputs", arrays)
        assert result.exit_code == 0
        assert "ignored" in result.stderr
        assert "label" in result.stderr


class TestRun:
    @pytest.fixture
    def arrays(self, tmp_path: Path) -> Path:
        path = tmp_path / "x.npz"
        ones = np.ones((2, 3), np.float32)
        np.savez(path, a=ones, b=np.ones(3, np.float32), z_grad=ones)
        return path

    def test_a_forward_model(self, arrays: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.npz"
        result = command("run", ADD, "--inputs", arrays, "--out", out, "--wrt", "b")
        assert result.exit_code == 0
        with np.load(out) as results:
            assert sorted(results.files) == ["b_grad", "z"]
            np.testing.assert_array_equal(results["b_grad"], [2, 2, 2])

    def test_another_transform(self, tmp_path: Path) -> None:
        a, b = np.ones((2, 3), np.float32), np.ones(3, np.float32)
        given, out = tmp_path / "in.npz", tmp_path / "out.npz"
        np.savez(given, a=a, b=b, a_tangent=a, b_tangent=b)
        result = command("run", ADD, "--transform", "jvp", "--inputs", given, "--out", out)
        assert result.exit_code == 0
        np.testing.assert_array_equal(np.load(out)["z_tangent"], np.full((2, 3), 2, np.float32))

    def test_a_gradient_model(self, arrays: Path, tmp_path: Path) -> None:
        command("vjp", ADD, tmp_path / "gradient.onnx")
        out = tmp_path / "out.npz"
        result = command("run", tmp_path / "gradient.onnx", "--inputs", arrays, "--out", out, "--json")
        assert json.loads(result.stdout)["arrays"]["a_grad"] == {"dtype": "float32", "shape": [2, 3]}
        result = command("run", tmp_path / "gradient.onnx", "--inputs", arrays, "--out", out, "--wrt", "b")
        assert result.exit_code == 2
        assert "already is a gradient model" in result.stderr

    def test_wrong_shapes_and_files(self, arrays: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.npz"
        np.savez(tmp_path / "bad.npz", a=np.ones((2, 4), np.float32), b=np.ones(3, np.float32))
        result = command("run", ADD, "--inputs", tmp_path / "bad.npz", "--out", out)
        assert result.exit_code == 2
        assert "'a'" in result.stderr
        (tmp_path / "text.npz").write_text("not arrays")
        assert command("run", ADD, "--inputs", tmp_path / "text.npz", "--out", out).exit_code == 2
        np.savez(tmp_path / "other.npz", c=np.ones(1))
        result = command("run", ADD, "--inputs", tmp_path / "other.npz", "--out", out)
        assert "name the arrays after the inputs" in result.stderr
        assert not out.exists()

    def test_a_provider_that_is_not_there(self, arrays: Path, tmp_path: Path) -> None:
        result = command(
            "run", ADD, "--inputs", arrays, "--out", tmp_path / "o.npz", "--providers", "NoExecutionProvider"
        )
        assert result.exit_code == 2
        assert "NoExecutionProvider" in result.stderr


def test_help_is_enough_to_get_going() -> None:
    assert "onnx-grad inspect MODEL.onnx" in command("--help").stdout
    for name in ("vjp", "grad", "inspect", "check", "run"):
        result = command(name, "--help")
        assert result.exit_code == 0
        assert "--wrt" in result.stdout


def test_as_a_process() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from onnx_grad.cli import main; main()", "inspect", ADD],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Nothing blocks." in process.stdout
    assert process.stderr == ""
