"""The `Trainer`: what it learns, that it repeats itself bit for bit, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.training import (
    SGD,
    CosineSchedule,
    EarlyStopping,
    Linear,
    ParameterGroup,
    StepDecay,
    Trainer,
    plot_curves,
)
from tests.graphs import parse
from tests.training.networks import MODELS, classifier, points

DROPOUT = """g (float[batch,4] x) => (float[batch,3] logits)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,8,7,6}, float r = {0.5}> {
    [drop] d = Dropout (x, r)
    logits = MatMul (d, w)
}"""


def trainer(model: Any = None, loss: Any = "cross_entropy", **options: Any) -> Trainer:
    options = {"target": "labels", "learning_rate": 0.02, "batch_size": 16, **options}
    return Trainer(model if model is not None else classifier(), loss, **options)


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


class TestLearning:
    def test_it_learns(self) -> None:
        t = trainer()
        history = t.fit(points(), 20, evaluation=points(seed=1), metrics=["accuracy"])
        assert history[0]["loss"] > 2 * history[-1]["loss"]
        assert history[-1]["evaluation"]["accuracy"] > 0.9
        assert t.evaluate(points(seed=1), ["accuracy"]) == history[-1]["evaluation"]

    def test_steps_are_those_of_pytorch(self) -> None:
        torch = pytest.importorskip("torch", reason="the steps are compared with PyTorch's")
        t = trainer(optimizer=SGD(momentum=0.9), clip_norm=0.5)
        w = {name: torch.tensor(value, requires_grad=True) for name, value in t.weights().items()}
        optimizer = torch.optim.SGD(list(w.values()), lr=0.02, momentum=0.9)
        for seed in range(30):
            batch = points(16, seed)
            optimizer.zero_grad()
            hidden = torch.tanh(torch.from_numpy(batch["x"]) @ w["w1"] + w["b1"])
            logits = hidden @ w["w2"] + w["b2"]
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"]))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(list(w.values()), 0.5)
            optimizer.step()
            result = t.step(batch)
            np.testing.assert_allclose(result.loss, loss.item(), rtol=1e-5)
            np.testing.assert_allclose(result.gradient_norm, norm.item(), rtol=1e-5)
        for name, value in t.weights().items():
            np.testing.assert_allclose(value, w[name].detach().numpy(), rtol=1e-4, atol=1e-6)

    def test_running_statistics_are_those_of_pytorch(self) -> None:
        torch = pytest.importorskip("torch", reason="the statistics are compared with PyTorch's")
        images = np.load(MODELS / "digits.npz")
        t = trainer(MODELS / "digits_cnn.onnx", learning_rate=0.0)
        start = t.weights()
        for rows in (slice(0, 16), slice(16, 32), slice(8, 24)):
            t.step({"image": images["image"][rows], "labels": images["label"][rows]})
        norm = torch.nn.BatchNorm2d(16)
        norm.running_mean = torch.tensor(start["norm1.running_mean"])
        norm.running_var = torch.tensor(start["norm1.running_var"])
        weight, bias = torch.tensor(start["conv1.weight"]), torch.tensor(start["conv1.bias"])
        for rows in (slice(0, 16), slice(16, 32), slice(8, 24)):
            x = torch.from_numpy(images["image"][rows])
            norm(torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1)))
        after = t.weights()
        np.testing.assert_allclose(after["norm1.running_mean"], norm.running_mean.numpy(), rtol=1e-5)
        np.testing.assert_allclose(after["norm1.running_var"], norm.running_var.numpy(), rtol=1e-5)
        np.testing.assert_array_equal(after["conv1.weight"], start["conv1.weight"])

    @pytest.mark.parametrize("model", [None, DROPOUT])
    def test_recomputing_changes_nothing(self, model: str | None) -> None:
        """The masks of `Dropout` included: they depend on the seed alone."""
        given = classifier() if model is None else parse(model)
        every = [name for node in given.graph.node for name in node.output]
        batch = points() if model is None else {"x": np.ones((16, 4)), "labels": np.arange(16) % 3}
        plain, lean = (trainer(given, **options) for options in ({}, {"recompute": every}))
        for t in (plain, lean):
            for _ in range(3):
                t.step(batch)
        for name, value in plain.weights().items():
            np.testing.assert_allclose(lean.weights()[name], value, rtol=1e-5)

    def test_accumulated_batches_are_one_large_batch(self) -> None:
        batch = points(32)
        halves = [{name: array[rows] for name, array in batch.items()} for rows in (slice(16), slice(16, 32))]
        whole, parts = trainer(), trainer(accumulation=2)
        for _ in range(3):
            one, two = whole.step(batch), parts.step(*halves)
            np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
            np.testing.assert_allclose(two.gradient_norm, one.gradient_norm, rtol=1e-5)
        for name, value in parts.weights().items():
            np.testing.assert_allclose(value, whole.weights()[name], rtol=1e-4, atol=1e-6)

    def test_frozen_parameters_and_groups(self) -> None:
        group = ParameterGroup("b*", learning_rate_factor=0.0)
        t = trainer(frozen="w1", groups=[group])
        assert t.parameters == ("b1", "w2", "b2")
        before = t.weights()
        t.step(points())
        after = t.weights()
        np.testing.assert_array_equal(before["b1"], after["b1"])
        assert not np.array_equal(before["w2"], after["w2"])

    def test_masks_differ_from_step_to_step_and_repeat_with_the_seed(self) -> None:
        losses = []
        for seed in (0, 0, 1):
            t = trainer(parse(DROPOUT), seed=seed, learning_rate=0.0)
            losses.append([t.step(points(16)).loss for _ in range(4)])
        assert len(set(losses[0])) == 4
        assert losses[0] == losses[1] != losses[2]
        still = trainer(parse(DROPOUT), training_mode=False, learning_rate=0.0)
        assert still.step(points(16)).loss == still.step(points(16)).loss

    def test_averages_of_weights(self, tmp_path: Path) -> None:
        t = trainer(average=0.5)
        expected = t.weights()
        for _ in range(4):
            t.step(points())
            expected = {name: 0.5 * expected[name] + 0.5 * value for name, value in t.weights().items()}
        for name, value in t.weights(average=True).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)
        t.export(tmp_path / "average.onnx", average=True)
        stored = {v.name: v for v in onnx.load(tmp_path / "average.onnx").graph.initializer}
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored["w1"]), t.weights(average=True)["w1"])
        with pytest.raises(onnx_grad.InputError, match="average"):
            trainer().weights(average=True)

    def test_more_parameters_than_a_slice_holds(self) -> None:
        torch = pytest.importorskip("torch", reason="the steps are compared with PyTorch's")
        t = trainer(classifier(hidden=12_000))
        start = t.weights()
        w = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
        optimizer = torch.optim.AdamW(list(w.values()), lr=0.02)
        batch = points(8)
        for _ in range(3):
            optimizer.zero_grad()
            hidden = torch.tanh(torch.from_numpy(batch["x"]) @ w["w1"] + w["b1"])
            loss = torch.nn.functional.cross_entropy(
                hidden @ w["w2"] + w["b2"], torch.from_numpy(batch["labels"])
            )
            loss.backward()
            optimizer.step()
            t.step(batch)
        for name, value in t.weights().items():
            moved = w[name].detach().numpy()
            assert np.abs(value - moved).max() < 1e-3 * np.abs(moved - start[name]).max()


class TestData:
    def test_files_arrays_lists_and_functions_give_the_same(self, tmp_path: Path) -> None:
        arrays = points(32)
        np.savez(tmp_path / "train.npz", **arrays, other=np.ones(3))
        order = np.random.default_rng([0, 0]).permutation(32)
        batches = [{n: a[rows] for n, a in arrays.items()} for rows in (order[:16], order[16:])]
        results = []
        for data in (arrays, tmp_path / "train.npz", batches, lambda epoch: iter(batches)):
            t = trainer()
            t.fit(data, 1)
            results.append(t.weights())
        for other in results[1:]:
            assert_equal(results[0], other)

    def test_numbers_are_converted_within_their_kind(self) -> None:
        arrays = points(16)
        wide = {"x": arrays["x"].astype(np.float64), "labels": arrays["labels"].astype(np.int32)}
        assert trainer().fit(wide, 1) == trainer().fit(arrays, 1)

    def test_a_step_takes_lists_and_leaves_out_what_it_does_not_need(self) -> None:
        batch = points(4)
        lists: dict[str, Any] = {name: array.tolist() for name, array in batch.items()}
        assert trainer().step({**lists, "other": [1]}) == trainer().step(batch)
        with pytest.raises(onnx_grad.InputError, match="'labels'"):
            trainer().step({"x": batch["x"]})

    def test_bad_data_is_refused(self, tmp_path: Path) -> None:
        good, t = points(16), trainer()
        for data, message in (
            ({"x": good["x"]}, "no array for 'labels'"),
            ({**good, "labels": good["labels"][:3]}, "different numbers of examples"),
            ({name: array[:0] for name, array in good.items()}, "empty"),
            ([], "empty"),
            ({**good, "labels": good["labels"] + 1}, "holds the label 3 .* 0 to 2"),
            ({**good, "labels": good["labels"] - 1}, "holds the label -1"),
            ({**good, "x": good["x"][:, :3]}, "dimension 1 must be 4"),
            ({**good, "x": good["labels"][:, None].repeat(4, 1)}, "'x' holds int64"),
            (iter([good]), "once only"),
            ([good["x"]], "a batch is a dict"),
            ({"x": np.float32(1), "labels": np.int64(1)}, "single number"),
            (tmp_path / "none.npz", "cannot read"),
            (42, "int is no data"),
        ):
            with pytest.raises(onnx_grad.InputError, match=message):
                t.fit(data, 1)

    def test_ignored_labels_pass(self) -> None:
        batch = points(16)
        batch["labels"][::2] = -100
        assert np.isfinite(trainer().step(batch).loss)

    def test_bad_options_are_refused(self) -> None:
        for options in (
            {"learning_rate": -1.0},
            {"learning_rate": float("nan")},
            {"accumulation": 0},
            {"batch_size": 0},
            {"seed": -1},
            {"clip_norm": -1.0},
            {"schedule": 7},
            {"parameters": ["w1", 3]},
        ):
            with pytest.raises(onnx_grad.InputError):
                trainer(**options)
        for options in ({"optimizer": "adamx"}, {"schedule": "cosin"}, {"parameters": "nothing*"}):
            with pytest.raises(onnx_grad.UnknownNameError):
                trainer(**options)
        with pytest.raises(onnx_grad.UnknownNameError, match="metrics"):
            trainer().evaluate(points(), ["acuracy"])
        with pytest.raises(onnx_grad.InputError, match="1 to 1 batches"):
            trainer().step(points(), points())


class TestSchedules:
    def rates(self, tmp_path: Path, **options: Any) -> list[float]:
        log = tmp_path / "log.jsonl"
        trainer(learning_rate=1.0, optimizer="sgd", **options).fit(points(64), 2, log=log)
        lines = map(json.loads, log.read_text().splitlines())
        return [line["learning_rate"] for line in lines if line["event"] == "step"]

    def test_factors(self, tmp_path: Path) -> None:
        assert self.rates(tmp_path, schedule="constant") == [1.0] * 8
        cosine = [0.5 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
        np.testing.assert_allclose(self.rates(tmp_path, schedule="cosine"), cosine)
        np.testing.assert_allclose(
            self.rates(tmp_path, schedule=StepDecay(3, 0.5)), [1] * 3 + [0.5] * 3 + [0.25] * 2
        )
        warm = self.rates(tmp_path, schedule=Linear(0.2, warmup=3))
        np.testing.assert_allclose(warm, [0.25, 0.5, 0.75, 1.0, 0.84, 0.68, 0.52, 0.36])

    def test_a_schedule_needs_to_know_the_end(self) -> None:
        batches = [points(16)]
        with pytest.raises(onnx_grad.InputError, match="number of batches"):
            trainer(schedule=CosineSchedule()).fit(lambda epoch: batches, 1)


class TestEnding:
    def test_early_stopping(self) -> None:
        t = trainer(learning_rate=0.0)
        history = t.fit(points(), 50, evaluation=points(), early_stopping=EarlyStopping(patience=3))
        assert len(history) == 4
        assert len(t.fit(points(), 50, evaluation=points())) == 4

    def test_the_best_weights_come_back(self, tmp_path: Path) -> None:
        # Labels that have nothing to do with the points: the surer, the worse.
        held_out = {**points(32, seed=1), "labels": np.random.default_rng(0).integers(0, 3, 32)}
        options: dict[str, Any] = {
            "evaluation": held_out,
            "early_stopping": EarlyStopping(patience=2),
            "checkpoint": tmp_path,
            "resume": True,
        }
        t = trainer()
        history = t.fit(points(), 12, **options)
        losses = [line["evaluation"]["loss"] for line in history]
        assert losses[-1] > min(losses)
        assert t.evaluate(held_out)["loss"] == min(losses)
        again = trainer()
        assert again.fit(points(), 12, **options) == history
        assert_equal(again.weights(), t.weights())
        last = trainer()
        options["early_stopping"] = EarlyStopping(patience=2, restore_best=False)
        last.fit(points(), 12, **options)
        assert last.evaluate(held_out)["loss"] == losses[-1]

    def test_what_early_stopping_watches_has_to_be_there(self) -> None:
        with pytest.raises(onnx_grad.InputError, match="'accuracy'"):
            trainer().fit(points(), 2, early_stopping=EarlyStopping(metric="accuracy"))

    def test_numbers_that_are_none_are_traced_to_where_they_began(self) -> None:
        model = parse(
            """g (float[batch,2] x) => (float[batch,2] y) <float[2] w = {1, 1}> {
                [scaled] a = Mul (x, w)
                [root] y = Log (a)
            }"""
        )
        t = Trainer(model, "mean_squared_error", target="t")
        before = t.weights()
        batch = {"x": np.array([[1, -1]], np.float32), "t": np.ones((1, 2), np.float32)}
        with pytest.raises(onnx_grad.DivergedError, match=r"update 1: the loss is nan.*'y'.*Log node 'root'"):
            t.step(batch)
        assert_equal(before, t.weights())
        with pytest.raises(onnx_grad.DivergedError, match="input 'x' holds 1 NaN of 2"):
            t.step({**batch, "x": np.array([[1, np.nan]], np.float32)})

    def test_gradients_that_are_none_are_traced_too(self) -> None:
        model = parse(
            """g (float[batch,2] x) => (float[batch,2] y) <float[2] w = {0, 0}> {
                [scaled] a = Mul (x, w)
                [root] y = Sqrt (a)
            }"""
        )
        t = Trainer(model, "mean_squared_error", target="t")
        batch = {"x": np.ones((1, 2), np.float32), "t": np.ones((1, 2), np.float32)}
        with pytest.raises(onnx_grad.DivergedError, match=r"norm of the gradients .*gradient of node 'root'"):
            t.step(batch)


class TestLog:
    def test_lines_and_curves(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="curves are drawn by matplotlib")
        log, picture = tmp_path / "log.jsonl", tmp_path / "curves.png"
        trainer().fit(points(64), 2, evaluation=points(), metrics=["accuracy"], log=log)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 9))
        assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2]
        plot_curves(log, picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
        log.write_text("")
        with pytest.raises(onnx_grad.InputError, match="no steps"):
            plot_curves(log, picture)

    def test_metrics_of_ones_own(self) -> None:
        def largest(outputs: Any, batch: Any) -> float:
            assert set(batch) == {"x", "labels"}
            return float(outputs["logits"].max())

        assert "largest" in trainer().evaluate(points(), [largest])


def test_training_and_evaluation_agree_where_no_layer_differs() -> None:
    t = trainer(learning_rate=0.0)
    batch = points(16)
    assert t.step(batch).loss == pytest.approx(t.evaluate(batch)["loss"], rel=1e-6)
