"""Models that ONNX Runtime has optimized and saved have the gradients of the files they were made from."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from models import FOLDER
from tests.oracle import evaluator, given_names, quiet_vjp

torch = pytest.importorskip("torch", reason="exports models with PyTorch")
nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own age

WIDTH, HEADS, WORDS, LENGTH = 16, 2, 11, 5
Arrays = Mapping[str, np.ndarray]
Optimize = Callable[[onnx.ModelProto, Path], onnx.ModelProto]


class RootMeanSquare(nn.Module):
    """The normalization of LLaMA and T5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: Any) -> Any:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """A block of an encoder as BERT has it."""

    def __init__(self, activation: Callable[[Any], Any], norm: Callable[[int], Any] = nn.LayerNorm) -> None:
        super().__init__()
        self.query, self.key, self.value, self.merge = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.inner, self.outer = norm(WIDTH), norm(WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.activation = activation

    def forward(self, x: Any, mask: Any = None) -> Any:
        batch, sequence, _ = x.shape
        q, k, v = (
            layer(x).view(batch, sequence, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if mask is not None:
            scores = scores + (1 - mask[:, None, None, :].float()) * -10000.0
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, sequence, WIDTH)
        x = self.inner(x + self.merge(attended))
        return self.outer(x + self.contract(self.activation(self.expand(x))))


class Encoder(nn.Module):
    """Embeddings of words, positions and segments, and two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(8, WIDTH)
        self.segment, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList([Block(nn.functional.gelu), Block(nn.functional.gelu)])

    def forward(self, words: Any, segments: Any, mask: Any) -> Any:
        positions = self.position(torch.arange(words.shape[1])[None])
        x = self.norm(self.word(words) + positions + self.segment(segments))
        for block in self.blocks:
            x = block(x, mask)
        return x


class Images(nn.Module):
    """A small convolutional network with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.last = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        y = nn.functional.relu(self.first(x))
        y = nn.functional.relu(self.second(y) + y)
        y = nn.functional.leaky_relu(self.third(y), 0.1)
        return nn.functional.relu(self.last(y.mean((2, 3))))


WORDS_GIVEN = {
    "words": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]),
    "segments": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]),
    "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def scripted(module: Any, inputs: Mapping[str, Any], opset: int = 17) -> onnx.ModelProto:
    """The module by the TorchScript exporter, with a batch of any size."""
    torch.manual_seed(0)
    file = io.BytesIO()
    axes = {name: {0: "batch"} for name in inputs}
    torch.onnx.export(
        module().eval(),
        tuple(inputs.values()),
        file,
        dynamo=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=["y"],
        dynamic_axes=axes,
    )
    return onnx.load_model_from_string(file.getvalue())


def extended(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What ONNX Runtime saves at the level `extended`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def for_transformers(model: onnx.ModelProto, folder: Path, **choices: bool) -> onnx.ModelProto:
    """What the optimizer for transformers saves, which comes with ONNX Runtime; it finds out the heads."""
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    fusion = pytest.importorskip("onnxruntime.transformers.fusion_options").FusionOptions("bert")
    for name, choice in choices.items():
        setattr(fusion, name, choice)
    onnx.save(model, folder / "model.onnx")
    logging.disable(logging.CRITICAL)
    try:
        made = optimizer.optimize_model(
            str(folder / "model.onnx"),
            "bert",
            num_heads=0,
            hidden_size=0,
            opt_level=0,
            optimization_options=fusion,
        )
    finally:
        logging.disable(logging.NOTSET)
    made.save_model_to_file(str(folder / "optimized.onnx"))
    return onnx.load(folder / "optimized.onnx")


def with_multi_head_attention(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The same, with another operator for attention."""
    return for_transformers(model, folder, use_multi_head_attention=True)


def fused(model: onnx.ModelProto) -> set[str]:
    """The operators that the specification does not have."""
    return {
        node.op_type
        for node in model.graph.node
        if node.domain or node.op_type == "SimplifiedLayerNormalization"
    }


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The float initializers that are not scalars."""
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {n: a for n, a in tensors.items() if a.dtype == np.float32 and a.size > 1}


def gradients(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """Those of all weights and float inputs, for one cotangent."""
    wrt = [*weights(model), *(name for name, array in inputs.items() if array.dtype == np.float32)]
    transformed = quiet_vjp(model, wrt)
    seeds, names = given_names(transformed)
    (y,) = evaluator(model)(inputs).values()
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    values = evaluator(transformed)({**inputs, next(iter(seeds.values())): dy})
    return {name: values[names[name]] for name in wrt}


def assert_same_gradients(optimized: onnx.ModelProto, original: onnx.ModelProto, inputs: Arrays) -> None:
    """Every gradient of the optimized model is that of the original; some weights are merged."""
    expected, actual = gradients(original, inputs), gradients(optimized, inputs)
    before, after = weights(original), weights(optimized)
    scale = max(float(np.abs(array).max()) for array in expected.values())
    compared = set()
    for name, gradient in actual.items():
        origin = [name] if name in expected else list(_origins(after[name], before))
        if not origin:
            assert not after[name].any(), f"{name} is none of the original weights"
            continue
        compared.update(origin)
        wanted = np.concatenate([expected[part] for part in origin], axis=-1)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6 * scale, err_msg=name)
    assert compared == set(expected)


def _origins(weight: np.ndarray, candidates: Arrays) -> Iterator[str]:
    """The weights that are this one, or that were joined along the last axis to make it."""
    for parts in ([weight], np.split(weight, 3, axis=-1) if weight.shape[-1] % 3 == 0 else []):
        found = [
            next((n for n, a in candidates.items() if a.shape == p.shape and np.array_equal(a, p)), None)
            for p in parts
        ]
        if found and None not in found:
            yield from (name for name in found if name is not None)
            return


def _arrays(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    """Encoders of both exporters, without embeddings of words and with them."""
    return {
        "traced": onnx.load(FOLDER / "encoder.onnx"),
        "scripted": onnx.load(FOLDER / "encoder_torchscript.onnx"),
        "words": scripted(Encoder, WORDS_GIVEN),
        "words, opset 14": scripted(Encoder, WORDS_GIVEN, opset=14),
    }


LAYERS, WORDS_TOO = {"BiasGelu", "SkipLayerNormalization"}, {"EmbedLayerNormalization"}
CASES: list[tuple[Optimize, str, set[str]]] = [
    (extended, "traced", {"BiasGelu", "FusedMatMul"}),
    (extended, "scripted", {"BiasGelu", "FusedMatMul"}),
    (extended, "words", LAYERS),
    (extended, "words, opset 14", LAYERS),
    (for_transformers, "traced", LAYERS | {"Attention"}),
    (for_transformers, "scripted", LAYERS | {"Attention"}),
    (for_transformers, "words", LAYERS | WORDS_TOO | {"Attention"}),
    (for_transformers, "words, opset 14", LAYERS | WORDS_TOO | {"Attention"}),
    (with_multi_head_attention, "traced", LAYERS | {"MultiHeadAttention"}),
    (with_multi_head_attention, "words", LAYERS | WORDS_TOO | {"MultiHeadAttention"}),
]


@pytest.mark.parametrize(
    ("optimize", "name", "found"), CASES, ids=[f"{optimize.__name__}-{name}" for optimize, name, _ in CASES]
)
def test_an_encoder(
    models: dict[str, onnx.ModelProto], optimize: Optimize, name: str, found: set[str], tmp_path: Path
) -> None:
    inputs = WORDS_GIVEN if name.startswith("words") else {"embeddings": _float_input(2, LENGTH, 32)["x"]}
    optimized = optimize(models[name], tmp_path)
    assert found <= fused(optimized)
    assert_same_gradients(optimized, models[name], _arrays(inputs))


def _float_input(*shape: int) -> dict[str, Any]:
    return {"x": torch.randn(*shape, generator=torch.Generator().manual_seed(0))}


OTHERS = {
    "QuickGelu": (
        lambda: Block(lambda x: x * torch.sigmoid(1.702 * x)),
        _float_input(2, LENGTH, WIDTH),
        {"QuickGelu"},
    ),
    "RMS normalization": (
        lambda: Block(nn.functional.silu, RootMeanSquare),
        _float_input(2, LENGTH, WIDTH),
        {"SimplifiedLayerNormalization", "QuickGelu"},
    ),
    "convolutions": (Images, _float_input(2, 3, 8, 8), {"FusedConv", "FusedGemm"}),
}


@pytest.mark.parametrize(("name", "opset"), list(itertools.product(OTHERS, (14, 17))), ids=str)
def test_other_models(name: str, opset: int, tmp_path: Path) -> None:
    module, inputs, found = OTHERS[name]
    original = scripted(module, inputs, opset)
    optimized = extended(original, tmp_path)
    assert found <= fused(optimized)
    assert_same_gradients(optimized, original, _arrays(inputs))


def test_types_are_known_behind_fused_operators_that_no_annotation_tells_of(
    models: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    optimized = for_transformers(models["words"], tmp_path)
    del optimized.graph.value_info[:]
    gradient = quiet_vjp(optimized, "parameters")
    known = {value.name for value in (*gradient.graph.value_info, *gradient.graph.output)}
    unknown = [name for node in gradient.graph.node for name in node.output if name and name not in known]
    assert unknown == []
