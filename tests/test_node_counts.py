"""How many nodes a gradient adds."""

from __future__ import annotations

import pytest

import onnx_grad
from models import light


@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "densenet121"])
def test_gradients_of_the_image_and_all_weights(name: str) -> None:
    model = light.load(name)
    gradient = onnx_grad.vjp(model, [light.image_name(model), *light.weight_names(model)])
    assert len(gradient.graph.node) <= 4.5 * len(model.graph.node)
