"""Makes every model again: ``python -m models [FOLDER]``; without a folder, in place."""

import sys
from pathlib import Path

from models import (
    FOLDER,
    broadcast_add,
    cartpole,
    digits,
    digits_cnn,
    digits_mlp,
    encoder,
    energy,
)

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
for model in (broadcast_add, cartpole, digits_mlp, digits_cnn, encoder, energy):
    model.main(folder)
digits.save_examples(folder / "digits.npz")
