"""One block of a transformer encoder, attention written out: ``python -m models.encoder``."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from models import FOLDER
from models.exporters import export_both, load_weights
from models.projection import Projection

WIDTH = 32
HEADS = 4


class Attention(nn.Module):
    """Self-attention: ``softmax(q kᵀ / sqrt(d)) v`` in each head, with ``d = WIDTH / HEADS``."""

    def __init__(self) -> None:
        super().__init__()
        self.query = Projection(WIDTH, WIDTH)
        self.key = Projection(WIDTH, WIDTH)
        self.value = Projection(WIDTH, WIDTH)
        self.merge = Projection(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, sequence, HEADS, WIDTH // HEADS).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        mixed = torch.softmax(scores, dim=-1) @ value
        merged: Tensor = self.merge(mixed.transpose(1, 2).reshape(batch, sequence, WIDTH))
        return merged


class Encoder(nn.Module):
    """``embeddings [batch, sequence, 32]`` to ``encoded`` of that shape; pre-norm, residuals, GELU.

    The weights are random but seeded, and no two are alike: exporters merge initializers which are
    identical, such as the ones and zeros of fresh LayerNorms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.feedforward_norm = nn.LayerNorm(WIDTH)
        self.expand = Projection(WIDTH, 2 * WIDTH)
        self.contract = Projection(2 * WIDTH, WIDTH)
        for norm in (self.attention_norm, self.feedforward_norm):
            nn.init.normal_(norm.weight, mean=1.0, std=0.1)
            nn.init.normal_(norm.bias, std=0.1)

    def forward(self, embeddings: Tensor) -> Tensor:
        x: Tensor = embeddings + self.attention(self.attention_norm(embeddings))
        fed: Tensor = self.contract(gelu(self.expand(self.feedforward_norm(x))))
        return x + fed


def load(path: Path = FOLDER / "encoder.onnx") -> Encoder:
    """The module with the weights of the shipped file."""
    return load_weights(Encoder(), path)


def main(folder: Path = FOLDER) -> None:
    """Exports the block with seeded random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dynamic = {0: "batch", 1: "sequence"}
    export_both(
        Encoder(),
        inputs={"embeddings": torch.randn(2, 5, WIDTH)},
        dynamic_inputs={"embeddings": dynamic},
        outputs={"encoded": dynamic},
        stem="encoder",
        folder=folder,
    )
    print("encoder: exported")


if __name__ == "__main__":
    main()
