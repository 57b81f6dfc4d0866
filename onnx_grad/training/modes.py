"""A forward model as it is to be trained."""

from __future__ import annotations

import warnings

import onnx_ir as ir

from onnx_grad.errors import NoLayerWarning
from onnx_grad.layers import training_mode


def in_training_mode(model: ir.Model) -> ir.Model:
    """`model` with `Dropout` and `BatchNormalization` as in training, if it has any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoLayerWarning)
        return training_mode(model)
