"""What is declared of every operator."""

from __future__ import annotations

import onnx
import pytest

from onnx_grad import registry
from onnx_grad.batching.registry import is_declared, operators
from onnx_grad.registry import State

# Their bodies are batched, or are in the place of the operator.
CONTROL_FLOW = {"If", "Loop", "Scan"}
WITHOUT_INPUTS = {"Constant", "RandomNormal", "RandomUniform"}


def _current_operators() -> set[str]:
    schemas = onnx.defs.get_all_schemas()
    return {s.name for s in schemas if s.domain == "" and not s.deprecated}


@pytest.mark.parametrize("operator", sorted(_current_operators()))
def test_every_operator_is_batched_expanded_or_refused(operator: str) -> None:
    expanded = registry.lookup("", operator).state is State.EXPANDED
    assert is_declared(operator) or expanded or operator in CONTROL_FLOW | WITHOUT_INPUTS


def test_refusals_say_why() -> None:
    reasons = [entry.refused for entry in operators().values() if entry.refused is not None]
    assert all(len(reason) > 40 and ";" in reason for reason in reasons)
