"""A multilayer perceptron which reads handwritten digits: ``python -m models.digits_mlp``."""

from pathlib import Path

import torch
from torch import Tensor, nn

from models import FOLDER, digits
from models.digits_training import held_out_accuracy, train
from models.exporters import export_both, load_weights


class DigitsMLP(nn.Module):
    """``pixels [batch, 64]`` to ``logits [batch, 10]`` through two hidden layers.

    Widths and dropout were chosen by cross-validation within the training images. Dropout acts only
    in training: the exported files have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(64, 128)
        self.hidden2 = nn.Linear(128, 64)
        self.readout = nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.2)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.hidden1(pixels)))
        hidden = self.dropout(torch.relu(self.hidden2(hidden)))
        logits: Tensor = self.readout(hidden)
        return logits


def load(path: Path = FOLDER / "digits_mlp.onnx") -> DigitsMLP:
    """The module with the weights of the shipped file."""
    return load_weights(DigitsMLP(), path)


def main(folder: Path = FOLDER) -> None:
    """Trains, exports and prints the held-out accuracy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training, test = digits.split()
    module = DigitsMLP()
    train(module, training.pixels, training.label, epochs=30)
    print(f"digits_mlp: accuracy {held_out_accuracy(module, test.pixels, test.label):.2%}")
    export_both(
        module,
        inputs={"pixels": torch.from_numpy(test.pixels[:3])},
        dynamic_inputs={"pixels": {0: "batch"}},
        outputs={"logits": {0: "batch"}},
        stem="digits_mlp",
        folder=folder,
    )


if __name__ == "__main__":
    main()
