"""What can be asked to be recomputed, what comes of it, and what is said where it cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import onnx_grad
from onnx_grad.cli import app
from tests.graphs import parse
from tests.recomputation.networks import example, perceptron, recomputed

LAYERS = 8
MODEL = perceptron(LAYERS, "batch, 4")
WEIGHTS = [f"w{i}" for i in range(LAYERS)]
SIZES = {"batch": 64}
TENSOR = 64 * 4 * 4


def peak(model: onnx.ModelProto) -> int:
    return onnx_grad.peak_memory(model, sizes=SIZES).activations


PLAIN = onnx_grad.vjp(MODEL, WEIGHTS)
NEEDED = peak(PLAIN)


class TestSqrt:
    def test_keeps_checkpoints_and_one_segment(self) -> None:
        model = onnx_grad.vjp(MODEL, WEIGHTS, recompute="sqrt")
        assert NEEDED > 2 * LAYERS * TENSOR
        assert peak(model) < NEEDED / 2

    def test_cuts_where_least_is_alive(self) -> None:
        """A wide hidden layer between narrow ones: the narrow ones are what is kept."""
        layers = " ".join(
            f"u{i} = MatMul ({'x' if i == 0 else f'h{i - 1}'}, a{i}) v{i} = Sin (u{i}) "
            f"p{i} = MatMul (v{i}, b{i}) h{i} = Sin (p{i})"
            for i in range(4)
        )
        weights = ", ".join(f"float[2, 64] a{i}, float[64, 2] b{i}" for i in range(4))
        model = parse(f"g (float[N, 2] x, {weights}) => (float[N, 2] y) {{ {layers} y = Identity (h3) }}")
        again = set(recomputed(onnx_grad.vjp(model, recompute="sqrt")).values())
        assert {"v0", "v1"} <= again
        assert not {"h0", "h1", "h2"} <= again

    def test_the_last_segment_is_kept(self) -> None:
        again = recomputed(onnx_grad.vjp(MODEL, WEIGHTS, recompute="sqrt")).values()
        assert "h0" in again
        assert f"h{LAYERS - 2}" not in again

    def test_nothing_to_cut(self) -> None:
        model = parse("g (float[N] x) => (float[N] y) { y = Exp (x) }")
        assert onnx_grad.vjp(model, recompute="sqrt") == onnx_grad.vjp(model)


class TestBudget:
    def test_enough_for_everything(self) -> None:
        assert onnx_grad.vjp(MODEL, WEIGHTS, recompute=NEEDED, sizes=SIZES) == PLAIN

    def test_is_met(self) -> None:
        budget = int(NEEDED * 0.6)
        assert peak(onnx_grad.vjp(MODEL, WEIGHTS, recompute=budget, sizes=SIZES)) <= budget

    def test_more_memory_is_less_work(self) -> None:
        much, little = (
            len(recomputed(onnx_grad.vjp(MODEL, WEIGHTS, recompute=int(NEEDED * share), sizes=SIZES)))
            for share in (0.8, 0.5)
        )
        assert 0 < much < little

    def test_the_least_is_named_where_it_cannot_be_met_and_can_be(self) -> None:
        with pytest.raises(onnx_grad.InputError, match=r"made to fit into 1\.0 KiB") as error:
            onnx_grad.vjp(MODEL, WEIGHTS, recompute=1024, sizes=SIZES)
        (least,) = re.findall(r"reaches is [\d.]+ .iB \((\d+) bytes\)", str(error.value))
        assert peak(onnx_grad.vjp(MODEL, WEIGHTS, recompute=int(least), sizes=SIZES)) == int(least)

    def test_needs_the_sizes(self) -> None:
        with pytest.raises(onnx_grad.InputError, match=r"not known: 'p0'.*give sizes="):
            onnx_grad.vjp(MODEL, WEIGHTS, recompute=10_000)

    @pytest.mark.parametrize("budget", [0, -5, True, 1e6, [1], {"h0": 1}])
    def test_no_budget(self, budget: Any) -> None:
        with pytest.raises(onnx_grad.InputError, match="is no budget"):
            onnx_grad.vjp(MODEL, WEIGHTS, recompute=budget)


class TestNames:
    def test_one_name(self) -> None:
        assert set(recomputed(onnx_grad.vjp(MODEL, WEIGHTS, recompute="h3")).values()) == {"h3"}

    def test_unknown(self) -> None:
        with pytest.raises(onnx_grad.UnknownNameError, match=r"recompute: .* 'h33'. Did you mean .*'h3'"):
            onnx_grad.vjp(MODEL, WEIGHTS, recompute=["h33"])

    def test_an_operator_that_nothing_is_known_of(self) -> None:
        model = parse("g (float[N] x) => (float[N] y) { a = custom.Odd (x) b = Add (a, x) y = Exp (b) }")
        with pytest.raises(onnx_grad.InputError, match=r"'a'.*custom.Odd is no standard operator"):
            onnx_grad.vjp(model, of="y", stop="a", recompute=["a"])

    @pytest.mark.parametrize("recompute", ["sqrt", ["h0"], 10_000])
    def test_sizes_of_what_is_not_there(self, recompute: Any) -> None:
        with pytest.raises(onnx_grad.InputError, match="no input of the model has a dimension 'N'"):
            onnx_grad.vjp(MODEL, WEIGHTS, recompute=recompute, sizes={"N": 3})

    def test_sizes_are_for_recomputing(self) -> None:
        with pytest.raises(onnx_grad.InputError, match="give recompute="):
            onnx_grad.vjp(MODEL, WEIGHTS, sizes=SIZES)


class TestGradientFunction:
    def test_recomputes(self) -> None:
        feeds = example(MODEL, batch=3)
        dy = np.ones((3, 4), np.float32)
        plain, other = (
            onnx_grad.GradientFunction(MODEL, WEIGHTS, **kwargs)(feeds, cotangents={"y": dy}).gradients
            for kwargs in ({}, {"recompute": "sqrt"})
        )
        assert recomputed(onnx_grad.GradientFunction(MODEL, WEIGHTS, recompute="sqrt").model)
        for name in WEIGHTS:
            np.testing.assert_allclose(other[name], plain[name], rtol=1e-6)

    def test_other_transforms_do_not(self) -> None:
        with pytest.raises(onnx_grad.InputError, match="'jvp' does not take it"):
            onnx_grad.GradientFunction(MODEL, WEIGHTS, transform="jvp", recompute="sqrt")


class TestCommands:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(MODEL, path)
        return path

    def command(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_vjp_tells_both_peaks(self, path: Path) -> None:
        out = path.with_name("out.onnx")
        arguments = ["vjp", path, out, "--recompute", "sqrt", "--size", "batch=64"]
        peaks = json.loads(self.command(*arguments, "--json").stdout)["peak_memory"]
        assert peaks["after"]["activations"] == peak(onnx.load(out)) < peaks["before"]["activations"]
        shown = self.command(*arguments).stdout
        assert "before recomputing: activations take" in shown
        assert "after recomputing: activations take" in shown

    def test_a_budget_and_names(self, path: Path) -> None:
        out, budget = path.with_name("out.onnx"), f"{NEEDED / 2**20 / 2:.4f}MiB"
        arguments = ["vjp", path, out, *(f"--wrt={name}" for name in WEIGHTS)]
        assert self.command(*arguments, "--recompute", budget, "--size=batch=64").exit_code == 0
        assert peak(onnx.load(out)) <= NEEDED / 2
        assert self.command(*arguments, "--recompute", "h1", "--recompute", "h2").exit_code == 0
        assert set(recomputed(onnx.load(out)).values()) == {"h1", "h2"}

    def test_a_mere_number_is_a_name(self, path: Path) -> None:
        """As which exporters give them."""
        result = self.command("vjp", path, path.with_name("out.onnx"), "--recompute", "64")
        assert result.exit_code == 2
        assert "'64'" in result.stderr

    def test_memory(self, path: Path) -> None:
        shown = json.loads(self.command("memory", path, "--size", "batch=64", "--json").stdout)
        assert shown["activations"] == peak(MODEL)
        for option in ("--no-reuse", "--optimized"):
            assert "activations take" in self.command("memory", path, "--size", "batch=64", option).stdout

    @pytest.mark.parametrize("size", ["64", "batch=", "=3", "batch=x"])
    def test_no_size(self, path: Path, size: str) -> None:
        result = self.command("memory", path, "--size", size)
        assert result.exit_code == 2
        assert "is not SYMBOL=N" in result.output
