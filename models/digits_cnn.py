"""A convolutional network which reads handwritten digits: ``python -m models.digits_cnn``."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from models import FOLDER, digits
from models.digits_training import held_out_accuracy, train
from models.exporters import export_both, load_weights


class DigitsCNN(nn.Module):
    """``image [batch, 1, 8, 8]`` to ``logits [batch, 10]``.

    Normalization comes after the activation: right behind a convolution the exporters would merge
    it into that, and no file here would have a BatchNormalization.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.readout = nn.Linear(32 * 2 * 2, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = max_pool2d(self.norm1(torch.relu(self.conv1(image))), 2)
        features = avg_pool2d(self.norm2(torch.relu(self.conv2(features))), 2)
        logits: Tensor = self.readout(features.flatten(start_dim=1))
        return logits


def load(path: Path = FOLDER / "digits_cnn.onnx") -> DigitsCNN:
    """The module with the weights of the shipped file."""
    return load_weights(DigitsCNN(), path)


def main(folder: Path = FOLDER) -> None:
    """Trains, exports and prints the held-out accuracy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training, test = digits.split()
    module = DigitsCNN()
    train(module, training.image, training.label, epochs=15)
    print(f"digits_cnn: accuracy {held_out_accuracy(module, test.image, test.label):.2%}")
    export_both(
        module,
        inputs={"image": torch.from_numpy(test.image[:3])},
        dynamic_inputs={"image": {0: "batch"}},
        outputs={"logits": {0: "batch"}},
        stem="digits_cnn",
        folder=folder,
    )


if __name__ == "__main__":
    main()
