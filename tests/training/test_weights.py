"""The tuned model: the original file with other weights, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.training import Trainer, with_weights
from tests.training.networks import MODELS, classifier, points


def emptied(model: onnx.ModelProto, names: set[str]) -> bytes:
    """`model` without the content of some initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)
    return copy.SerializeToString(deterministic=True)


def weights(path: Path) -> dict[str, np.ndarray]:
    return {
        t.name: onnx.numpy_helper.to_array(t, str(path.parent)) for t in onnx.load(path).graph.initializer
    }


@pytest.mark.parametrize("name", ["digits_cnn.onnx", "digits_cnn_torchscript.onnx"])
def test_only_weights_differ(tmp_path: Path, name: str) -> None:
    images = np.load(MODELS / "digits.npz")
    trainer = Trainer(MODELS / name, "cross_entropy", target="labels", learning_rate=1e-2)
    trainer.step({"image": images["image"], "labels": images["label"]})
    out = tmp_path / "tuned.onnx"
    trainer.export(out)
    before, after = onnx.load(MODELS / name), onnx.load(out)
    changed = set(trainer.weights())
    assert emptied(before, changed) == emptied(after, changed)
    assert {"conv1.weight", "norm1.running_mean"} <= changed
    for key, value in trainer.weights().items():
        np.testing.assert_array_equal(weights(out)[key], value)
        assert not np.array_equal(weights(MODELS / name)[key], value)


def test_the_field_that_held_the_content_holds_it_again(tmp_path: Path) -> None:
    model = classifier()
    for index, tensor in enumerate(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        if index % 2:
            made = onnx.helper.make_tensor(tensor.name, tensor.data_type, values.shape, values.ravel())
            tensor.CopyFrom(made)
    trainer = Trainer(model, "cross_entropy", target="labels")
    trainer.step(points())
    trainer.export(tmp_path / "tuned.onnx")
    after = onnx.load(tmp_path / "tuned.onnx")
    assert emptied(model, set(trainer.weights())) == emptied(after, set(trainer.weights()))
    assert len(after.graph.initializer[1].float_data) == 8
    assert after.graph.initializer[0].raw_data


def test_other_float_types_stay_what_they_are(tmp_path: Path) -> None:
    for dtype, element in ((np.float16, onnx.TensorProto.FLOAT16), (np.float64, onnx.TensorProto.DOUBLE)):
        model = classifier(dtype=dtype)
        content = {name: np.full(shape, 0.5, np.float32) for name, shape in (("w1", (4, 8)), ("b2", (3,)))}
        with_weights(model, content, tmp_path / "tuned.onnx")
        after = {t.name: t for t in onnx.load(tmp_path / "tuned.onnx").graph.initializer}
        assert after["w1"].data_type == element
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(after["w1"]), content["w1"])


class TestExternalData:
    def saved(self, folder: Path) -> Path:
        folder.mkdir()
        path = folder / "model.onnx"
        onnx.save_model(
            classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        return path

    def tuned(self, path: Path, out: Path) -> Trainer:
        trainer = Trainer(path, "cross_entropy", target="labels", frozen="b1")
        trainer.step(points())
        trainer.export(out)
        return trainer

    def test_it_stays_external_under_its_name(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path / "original")
        (tmp_path / "tuned").mkdir()
        out = tmp_path / "tuned" / "tuned.onnx"
        before = (path.parent / "weights.bin").read_bytes()
        trainer = self.tuned(path, out)
        assert out.read_bytes() == path.read_bytes()
        assert (path.parent / "weights.bin").read_bytes() == before
        assert len((out.parent / "weights.bin").read_bytes()) == len(before)
        for name, value in trainer.weights().items():
            np.testing.assert_array_equal(weights(out)[name], value)
        np.testing.assert_array_equal(weights(out)["b1"], weights(path)["b1"])

    def test_in_the_same_folder_it_gets_another_name(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path / "original")
        before = (path.parent / "weights.bin").read_bytes()
        trainer = self.tuned(path, path.parent / "tuned.onnx")
        assert (path.parent / "weights.bin").read_bytes() == before
        assert sorted(p.name for p in path.parent.iterdir()) == [
            "model.onnx",
            "tuned.onnx",
            "tuned.onnx.data",
            "weights.bin",
        ]
        for name, value in trainer.weights().items():
            np.testing.assert_array_equal(weights(path.parent / "tuned.onnx")[name], value)

    def test_over_the_original_itself(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path / "original")
        trainer = self.tuned(path, path)
        for name, value in trainer.weights().items():
            np.testing.assert_array_equal(weights(path)[name], value)


def test_sparse_weights_become_dense(tmp_path: Path) -> None:
    model = classifier()
    bias = model.graph.initializer.pop(1)
    assert bias.name == "b1"
    values = onnx.helper.make_tensor("b1", onnx.TensorProto.FLOAT, [1], [0.5])
    indices = onnx.helper.make_tensor("b1_indices", onnx.TensorProto.INT64, [1], [2])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [8]))
    trainer = Trainer(model, "cross_entropy", target="labels")
    assert trainer.weights()["b1"][2] == 0.5
    trainer.step(points())
    trainer.export(tmp_path / "tuned.onnx")
    np.testing.assert_array_equal(weights(tmp_path / "tuned.onnx")["b1"], trainer.weights()["b1"])
    assert not onnx.load(tmp_path / "tuned.onnx").graph.sparse_initializer


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "tuned.onnx"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"w9": np.ones(3)}, "no initializer 'w9'"),
        ({"b1": np.ones(3)}, r"shape \[8\]"),
    ]
    for content, message in cases:
        with pytest.raises(onnx_grad.InputError, match=message):
            with_weights(classifier(), content, out)
    with pytest.raises(onnx_grad.OutputError):
        with_weights(classifier(), {}, tmp_path / "none" / "tuned.onnx")
    assert not out.exists()
