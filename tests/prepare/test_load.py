"""Files that are not what they should be, and weights that stay where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx_ir as ir
import onnxruntime
import pytest

import onnx_grad
from tests.graphs import parse


def weighty_model(size: int = 1000) -> onnx.ModelProto:
    """y = x·w with `size` weights, more than what is looked at inline."""
    model = parse(f"g (float[N,{size}] x) => (float[N,{size}] y) {{ y = Mul(x, w) }}")
    weights = np.arange(size, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return model


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model file whose weights lie in `weights.bin` beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(weighty_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def relocate(path: Path, location: str) -> None:
    """Let the external data of the model at `path` point to `location`."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())


class TestBadFiles:
    @pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"\x08\x08"])
    def test_not_a_model(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(onnx_grad.ModelError, match=r"x\.onnx' is not an ONNX model"):
            onnx_grad.vjp(tmp_path / "x.onnx")

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
    def test_truncated(self, tmp_path: Path, kept: float) -> None:
        content = weighty_model().SerializeToString()
        (tmp_path / "x.onnx").write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(onnx_grad.ModelError, match="truncated"):
            onnx_grad.vjp(tmp_path / "x.onnx")

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(onnx_grad.ModelError, match=r"nowhere\.onnx': No such file"):
            onnx_grad.vjp(tmp_path / "nowhere.onnx")
        with pytest.raises(onnx_grad.ModelError, match="Is a directory"):
            onnx_grad.vjp(tmp_path)

    def test_initializer_with_too_few_bytes(self) -> None:
        model = weighty_model()
        model.graph.initializer[0].raw_data = b"\x00" * 100
        with pytest.raises(onnx_grad.ModelError, match=r"'w' is damaged.*4000 bytes.*holds 100"):
            onnx_grad.vjp(model)


class TestExternalData:
    def test_missing(self, external: Path) -> None:
        (external.parent / "weights.bin").unlink()
        with pytest.raises(onnx_grad.ModelError, match=r"'w'.*'weights\.bin' is missing"):
            onnx_grad.vjp(external)

    def test_too_short(self, external: Path) -> None:
        (external.parent / "weights.bin").write_bytes(b"\x00" * 10)
        with pytest.raises(onnx_grad.ModelError, match="has only 10 bytes"):
            onnx_grad.vjp(external)

    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
    def test_outside_of_the_folder(self, external: Path, location: str) -> None:
        folder = external.parent / "inner"
        folder.mkdir()
        (external.parent / "secret.bin").write_bytes(b"\x00" * 4000)
        (folder / "link.bin").symlink_to(external.parent / "secret.bin")
        inner = folder / "model.onnx"
        inner.write_bytes(external.read_bytes())
        relocate(inner, location)
        with pytest.raises(onnx_grad.ModelError, match=r"outside of the model's folder"):
            onnx_grad.vjp(inner, save_as=folder / "out.onnx")
        assert not (folder / "out.onnx").exists()

    def test_stays_external_and_is_shared(self, external: Path) -> None:
        before = (external.parent / "weights.bin").read_bytes()
        result = onnx_grad.vjp(external, wrt=["x", "w"], save_as=external.parent / "gradient.onnx")
        (weight,) = [t for t in result.graph.initializer if t.name == "w"]
        assert onnx.external_data_helper.uses_external_data(weight)
        assert sorted(p.name for p in external.parent.iterdir()) == [
            "gradient.onnx",
            "model.onnx",
            "weights.bin",
        ]
        assert (external.parent / "weights.bin").read_bytes() == before
        self._assert_right(external.parent / "gradient.onnx")

    def test_is_written_beside_a_result_in_another_folder(self, external: Path, tmp_path: Path) -> None:
        target = tmp_path / "elsewhere" / "gradient.onnx"
        target.parent.mkdir()
        onnx_grad.vjp(external, wrt=["x", "w"], save_as=target)
        assert sorted(p.name for p in target.parent.iterdir()) == ["gradient.onnx", "gradient.onnx.data"]
        self._assert_right(target)

    def test_of_an_ir_model(self, external: Path) -> None:
        result = onnx_grad.vjp(ir.load(external), wrt="w")
        assert isinstance(result.graph.initializers["w"].const_value, ir.ExternalTensor)

    def test_is_not_read(self, external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def read(self: ir.ExternalTensor) -> None:
            raise AssertionError("the weights were read")

        monkeypatch.setattr(ir.ExternalTensor, "_load", read)
        onnx_grad.vjp(external, wrt=["x", "w"], save_as=external.parent / "gradient.onnx")

    @staticmethod
    def _assert_right(path: Path) -> None:
        session = onnxruntime.InferenceSession(path)
        x = np.ones((2, 1000), np.float32)
        _, dx, dw = session.run(None, {"x": x, "y_grad": x})
        np.testing.assert_array_equal(dx, np.tile(np.arange(1000, dtype=np.float32), (2, 1)))
        np.testing.assert_array_equal(dw, np.full(1000, 2, np.float32))


class TestTarget:
    def test_folder_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(onnx_grad.OutputError, match="does not exist"):
            onnx_grad.vjp(weighty_model(), save_as=tmp_path / "nowhere" / "out.onnx")

    def test_is_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(onnx_grad.OutputError, match="is a folder"):
            onnx_grad.vjp(weighty_model(), save_as=tmp_path)

    def test_an_error_leaves_the_old_file(self, tmp_path: Path) -> None:
        target = tmp_path / "out.onnx"
        target.write_text("old")
        with pytest.raises(onnx_grad.UnknownNameError):
            onnx_grad.vjp(weighty_model(), wrt="nothing", save_as=target)
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]
