"""The operators that rules emit can themselves be differentiated, so that gradients have gradients."""

from __future__ import annotations

from docs.operators import operators
from onnx_grad import registry
from onnx_grad.registry import State
from tests.emission import DIFFERENTIABLE, emissions


def test_every_differentiable_operator_is_run() -> None:
    run = {emission.operator for emission in emissions()}

    assert {name for name, entry in operators().items() if entry.state in DIFFERENTIABLE} - run == set()


def test_every_emitted_operator_can_be_differentiated() -> None:
    refused = {
        op_type: emission.form
        for emission in emissions()
        for op_type, _ in emission.nodes
        if registry.lookup("", op_type, emission.opset).state is State.REFUSED
    }

    assert refused == {}
