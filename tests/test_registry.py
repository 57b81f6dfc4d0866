"""The table of declared states: nothing is forgotten, and what rules emit has rules."""

from __future__ import annotations

import onnx
import pytest

from docs.operators import TARGET, operators, table
from onnx_grad import registry
from onnx_grad.registry import State


def test_every_operator_is_declared_or_has_a_function_body() -> None:
    """A new onnx release that adds an operator fails here."""
    undeclared = [
        name
        for name, entry in operators().items()
        if entry.state is State.REFUSED and ("", name) not in registry.operators()
    ]
    assert undeclared == []


def test_nothing_is_declared_that_does_not_exist() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert {name for domain, name in registry.operators() if domain == ""} <= known


@pytest.mark.parametrize("state", [State.REFUSED])
def test_a_refusal_says_what_to_do(state: State) -> None:
    for name, entry in operators().items():
        if entry.state is state:
            assert len(entry.reason) > 40, name


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text() == table(), "run python -m docs.operators"


def test_frozen_inputs_exist() -> None:
    for name, entry in operators().items():
        if entry.frozen:
            assert max(entry.frozen) < len(onnx.defs.get_schema(name).inputs), name
