"""What goes wrong, by kind. Every message says what happened, where, why and what to do next."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class OnnxGradError(Exception):
    """Base of every error that onnx_grad raises for a bad model, request or input."""


class ModelError(OnnxGradError):
    """The input model is damaged, inconsistent or incomplete."""


class UnknownNameError(OnnxGradError):
    """A name that was given is not a tensor, an input, an output or a layer of the model."""

    @classmethod
    def near(cls, role: str, name: str, known: Iterable[str], kind: str = "tensor") -> UnknownNameError:
        """Build the error for `name`, listing the closest of the `known` names of that kind."""
        known = list(known)
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        if close:
            hint = "Did you mean " + ", ".join(f"'{c}'" for c in close) + "?"
        else:
            shown = ", ".join(f"'{k}'" for k in known[:8])
            hint = f"The model has {len(known)} {kind}s, among them {shown}."
        return cls(f"{role}: the model has no {kind} named '{name}'. {hint}")


class NotDifferentiableError(OnnxGradError):
    """A tensor in `wrt` or `of` has a type that has no derivative, such as integers."""


class UnsupportedOpError(OnnxGradError):
    """Operators that cannot be differentiated on the way, or cannot be batched, all of them at once."""


class RuleError(OnnxGradError):
    """A gradient or batching rule broke its contract: its result does not match the node."""


class InputError(OnnxGradError):
    """An array or option that was given has the wrong name, shape, dtype or value."""


class RuntimeUnavailableError(OnnxGradError):
    """ONNX Runtime, or the execution provider that was asked for, is not there."""


class OutputError(OnnxGradError):
    """The result cannot be written where it was asked to go."""


class CheckpointError(OnnxGradError):
    """A checkpoint is damaged, or belongs to another training."""


class DivergedError(OnnxGradError):
    """A training came upon numbers that are infinite or none at all."""


class NoPathWarning(UserWarning):
    """No differentiable path leads from a tensor in `wrt` to any in `of`: its gradient is zeros."""


class NoLayerWarning(UserWarning):
    """A model has none of the layers that were to be put into training mode: it stays as it is."""


def callers_level() -> int:
    """How far up the stack the caller of the library is, seen from whoever asks."""
    level, frame = 0, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("onnx_grad"):
        level, frame = level + 1, frame.f_back
    return level
