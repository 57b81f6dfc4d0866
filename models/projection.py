"""The linear layer of ``encoder`` and ``energy``."""

import math

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """``x @ weight + bias``, the weight stored as ``[inputs, outputs]``.

    ``nn.Linear`` stores the transpose. When ``x`` has more than two dimensions, both exporters undo
    that and call the result ``val_5`` or ``onnx::MatMul_121``; here the weight keeps its name.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(0.1 * torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias
