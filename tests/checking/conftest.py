"""Rules for the duration of one test, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnx_grad import registry

RuleDecorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RuleDecorator]:
    """`@rule("Tanh")` registers the decorated function until the test ends."""
    monkeypatch.setattr(registry, "_table", dict(registry._table))
    return registry.gradient
