"""Recomputed values are what they were, in whatever graph, and late."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest

import onnx_grad
from models import FOLDER
from tests.graphs import parse
from tests.oracle import SHAPE_KNOWLEDGE, with_shapes
from tests.recomputation.networks import (
    LEVELS,
    example,
    executed,
    optimized,
    outputs,
    perceptron,
    recomputed,
    same,
)
from tests.test_random_graphs import graphs

SIZES = {"batch": 3, "sequence": 5, "particles": 4}

each_level = pytest.mark.parametrize("level", LEVELS)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *(("encoder", level) for level in LEVELS),
        *((name, "all") for name in ("cartpole", "digits_cnn", "encoder_torchscript", "energy")),
    ],
)
def test_the_gradients_of_the_models(name: str, level: str) -> None:
    path = FOLDER / f"{name}.onnx"
    plain = onnx_grad.vjp(path)
    every = [name for node in onnx.load(path).graph.node for name in node.output]
    feeds = example(plain, **SIZES)
    expected = outputs(plain, feeds, level)
    for choice in ("sqrt", every):
        model = onnx_grad.vjp(path, recompute=choice)
        if choice is every:
            assert recomputed(model)
        onnx.checker.check_model(model, full_check=True)
        same(expected, outputs(model, feeds, level))


@hypothesis.given(case=graphs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE), data=st.data())
@hypothesis.settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore::onnx_grad.NoPathWarning")
def test_random_graphs(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], knowledge: str, data: st.DataObject
) -> None:
    model, inputs = case
    model = with_shapes(model, knowledge)
    names = [name for node in model.graph.node for name in node.output]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    ends = {name: np.random.default_rng(0).standard_normal(array.shape) for name, array in run(model, inputs)}
    feeds = {**inputs, **{f"{name}_grad": array for name, array in ends.items()}}
    plain, other = onnx_grad.vjp(model), onnx_grad.vjp(model, recompute=chosen)
    level = data.draw(st.sampled_from(sorted(LEVELS)))
    same(outputs(plain, feeds, level), outputs(other, feeds, level), rtol=1e-12)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return list(outputs(model, inputs).items())


class TestOnOnnxRuntime:
    """What ONNX Runtime makes of the clones."""

    WEIGHTS = tuple(f"w{i}" for i in range(6))
    DROPPED = tuple(f"{kind}{i}" for i in (0, 1, 3) for kind in "ph")

    @pytest.mark.parametrize("opset", [18, 21])
    @each_level
    def test_clones_are_not_merged_with_what_they_repeat(
        self, level: str, opset: int, tmp_path: Path
    ) -> None:
        source = perceptron(6, "2, 4", opset)
        model = onnx_grad.vjp(source, self.WEIGHTS, recompute=self.DROPPED)
        assert sorted(recomputed(model).values()) == sorted(self.DROPPED)
        kept = [node.op_type for node in optimized(model, tmp_path, level).graph.node]
        assert kept.count("Sin") == 6 + 3

    @pytest.mark.parametrize(("knowledge", "opset"), [*((k, 18) for k in SHAPE_KNOWLEDGE), ("static", 21)])
    @each_level
    def test_clones_run_late(self, level: str, knowledge: str, opset: int, tmp_path: Path) -> None:
        """Each after the forward pass, and after all gradients of weights that are computed without it.

        The gradient of w₂ is the first that depends on h₁, and so on h₀, and that of w₄ on h₃.
        """
        static = perceptron(6, "2, 4", opset)
        feeds = {**example(static), "y_grad": np.ones((2, 4), np.float32)}
        model = onnx_grad.vjp(with_shapes(static, knowledge), self.WEIGHTS, recompute=self.DROPPED)
        order = executed(model, feeds, tmp_path, level)
        place = {name: index for index, name in enumerate(order)}
        forward = [place[f"h{layer}"] for layer in range(6)]
        gradients = {node.output[0]: node.name for node in model.graph.node}
        for layer, behind in {0: (3, 4, 5), 1: (3, 4, 5), 3: (5,)}.items():
            clone = place[f"h{layer}/recomputed"]
            assert clone > max(forward)
            assert all(clone > place[gradients[f"w{other}_grad"]] for other in behind)


class TestWhatIsRecomputed:
    def test_nothing_that_the_backward_pass_does_not_read(self) -> None:
        model = parse("g (float[N] x) => (float[N] y) { a = Neg (x) y = Exp (a) }")
        assert recomputed(onnx_grad.vjp(model, recompute=["a"])) == {}

    def test_outputs_and_inputs_are_there_anyway(self) -> None:
        model = parse("g (float[N] x) => (float[N] y, float[N] a) { a = Sin (x) y = Exp (a) }")
        assert recomputed(onnx_grad.vjp(model, of="y", recompute=["a", "x", "y"])) == {}

    def test_as_far_back_as_is_not_kept(self) -> None:
        model = parse("g (float[N] x) => (float[N] y) { a = Sin (x) b = Cos (a) c = Sin (b) y = Cos (c) }")
        one = onnx_grad.vjp(model, recompute=["b", "c"])
        assert sorted(recomputed(one).values()) == ["b", "c"]
        every = onnx_grad.vjp(model, recompute=["a", "b", "c"])
        assert sorted(recomputed(every).values()) == ["a", "b", "c"]

    def test_functions_of_weights_are_kept(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { v = Sin (w) y = Mul (x, v) }")
        assert recomputed(onnx_grad.vjp(model, recompute=["v"])) == {}

    def test_the_forward_pass_reads_what_it_read(self) -> None:
        model, weights = perceptron(4), [f"w{i}" for i in range(4)]
        before = {o: list(n.input) for n in model.graph.node for o in n.output}
        after = onnx_grad.vjp(model, weights, recompute="sqrt").graph.node
        assert {o: list(n.input) for n in after for o in n.output if o in before} == before


class TestRandomness:
    """A mask is drawn once."""

    MODEL = parse(
        "g (float[50] x) => (float[50] y) <float ratio = {0.5}, bool training = {1}> "
        "{ a = Sin (x) d = Dropout <seed: int = 1> (a, ratio, training) e = Tanh (d) y = Sin (e) }"
    )

    def test_naming_it_is_an_error(self) -> None:
        with pytest.raises(onnx_grad.InputError, match=r"'d'.*Dropout is random"):
            onnx_grad.vjp(self.MODEL, recompute=["d"])

    def test_what_follows_is_computed_from_the_same_draw(self) -> None:
        model = onnx_grad.vjp(self.MODEL, recompute=["a", "e"])
        assert sorted(recomputed(model).values()) == ["e"]
        x = np.linspace(0.1, 0.5, 50, dtype=np.float32)
        result = outputs(model, {"x": x, "y_grad": np.ones(50, np.float32)})
        dropped = result["y"] == 0
        assert 5 < dropped.sum() < 45
        d = 2 * np.sin(x)
        expected = np.cos(np.tanh(d)) * (1 - np.tanh(d) ** 2) * 2 * np.cos(x)
        np.testing.assert_allclose(result["x_grad"], np.where(dropped, 0, expected), rtol=1e-5)

    def test_a_dropout_that_does_not_drop_is_no_obstacle(self) -> None:
        model = parse("g (float[N] x) => (float[N] y) { a = Sin (x) d = Dropout (a) y = Sin (d) }")
        assert recomputed(onnx_grad.vjp(model, recompute=["a", "d"]))


class TestControlFlow:
    """Nodes with bodies are kept; what bodies read from outside is recomputed like anything else."""

    LOOP = parse(
        """g (float[N] x, int64 n) => (float[N] y) <bool go = {1}> {
            h = Sin (x)
            s = Loop (n, go, x) <body = b (int64 i, bool c, float[N] before) => (bool c2, float[N] after) {
                c2 = Identity (c)
                after = Mul (before, h)
            }>
            t = Cos (s)
            y = Sin (t)
        }"""
    )
    BRANCH = parse(
        """g (float[N] x, bool which) => (float[N] y) {
            h = Sin (x)
            k = Cos (h)
            s = If (which) <
                then_branch = a () => (float[N] u) { u = Mul (h, k) },
                else_branch = b () => (float[N] v) { v = Exp (k) }
            >
            y = Sin (s)
        }"""
    )

    @each_level
    def test_loop(self, level: str) -> None:
        self._check(self.LOOP, ["h", "t"], level, n=np.array(3))

    @each_level
    @pytest.mark.parametrize("which", [True, False])
    def test_if(self, level: str, which: bool) -> None:
        self._check(self.BRANCH, ["h", "k"], level, which=np.array(which))

    def test_naming_a_result_of_one_is_an_error(self) -> None:
        with pytest.raises(onnx_grad.InputError, match=r"'s'.*Loop holds a graph"):
            onnx_grad.vjp(self.LOOP, recompute=["s"])

    def _check(self, model: onnx.ModelProto, names: list[str], level: str, **more: np.ndarray) -> None:
        x = np.linspace(0.2, 0.9, 4, dtype=np.float32)
        feeds = {"x": x, "y_grad": np.ones_like(x), **more}
        gradient = onnx_grad.vjp(model, "x", recompute=names)
        assert set(recomputed(gradient).values()) == set(names)
        same(outputs(onnx_grad.vjp(model, "x"), feeds, level), outputs(gradient, feeds, level))


class TestCompositions:
    """A gradient that recomputes is a model like any other."""

    MODEL = parse(
        "g (float[N] x) => (float[1] y) { a = Sin (x) b = Mul (a, x) c = Exp (b) y = ReduceSum (c) }"
    )
    NAMES = ("a", "b", "c")

    def test_gradient_of_a_scalar(self) -> None:
        feeds = {"x": np.linspace(0.2, 0.9, 4, dtype=np.float32)}
        model = onnx_grad.grad(self.MODEL, recompute=self.NAMES)
        assert sorted(recomputed(model).values()) == ["a", "b", "c"]
        same(outputs(onnx_grad.grad(self.MODEL), feeds), outputs(model, feeds))

    def test_second_order(self) -> None:
        feeds = {"x": np.linspace(0.2, 0.9, 4, dtype=np.float32), "x_grad_grad": np.ones(4, np.float32)}
        twice = [
            onnx_grad.vjp(onnx_grad.grad(self.MODEL, **kwargs), "x", "x_grad")
            for kwargs in ({}, {"recompute": self.NAMES})
        ]
        same(*(outputs(model, feeds) for model in twice))

    def test_batched(self) -> None:
        feeds = {"x": np.random.default_rng(0).random((3, 4), dtype=np.float32)}
        batched = [
            onnx_grad.vmap(onnx_grad.grad(self.MODEL, **kwargs)) for kwargs in ({}, {"recompute": self.NAMES})
        ]
        same(*(outputs(model, feeds) for model in batched))

    def test_without_elements(self) -> None:
        model = onnx_grad.grad(self.MODEL, recompute=self.NAMES)
        assert outputs(model, {"x": np.zeros(0, np.float32)})["x_grad"].shape == (0,)


def test_a_file_of_an_old_version() -> None:
    """Where its initializers have to be inputs, the constants of the backward pass do not."""
    model = parse(
        "g (float[2, 3] x, float[3] w) => (float[2, 3] y) <float[3] w = {1, 2, 3}> "
        "{ a = Mul (x, w) b = Tanh (a) y = Exp (b) }",
        opset=13,
        ir_version=3,
    )
    gradient = onnx_grad.vjp(model, "x", recompute=["a", "b"])
    feeds = {"x": np.ones((2, 3), np.float32), "y_grad": np.ones((2, 3), np.float32)}
    assert recomputed(gradient)
    same(outputs(onnx_grad.vjp(model, "x"), feeds), outputs(gradient, feeds))
