"""Dynamic loss scaling: small gradients in float16 are kept from vanishing, large ones from overflowing."""

from __future__ import annotations

from onnx_grad.training.state import TrainingState

# Those of PyTorch's GradScaler.
_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000

# Below this, what overflows does so without being scaled.
SMALLEST_SCALE = 2.0**-10


def after_update(state: TrainingState) -> None:
    """Gradients were finite: the scale grows when they have been for long."""
    state.good_steps += 1
    if state.good_steps == _INTERVAL:
        state.loss_scale *= _GROWTH
        state.good_steps = 0


def after_overflow(state: TrainingState) -> bool:
    """Gradients were not finite: the scale shrinks; returns whether it can."""
    state.loss_scale *= _BACKOFF
    state.good_steps = 0
    return state.loss_scale >= SMALLEST_SCALE
