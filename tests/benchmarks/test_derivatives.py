"""Both sides of a comparison compute the same, and the command runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import derivatives


def test_the_jacobian_is_ten_vjps() -> None:
    comparison = derivatives.jacobian(threads=1)
    rows = comparison.reference.outputs("image_grad")
    (whole,) = comparison.derivative.outputs("logits_jacobian_image")
    assert whole.shape == (1, 10, 1, 1, 8, 8)
    np.testing.assert_allclose(whole[0], np.stack(rows), rtol=1e-4, atol=1e-5)


def test_the_hessian_is_an_hvp_for_each_column() -> None:
    comparison = derivatives.hessian(4, threads=1)
    columns = comparison.reference.outputs("positions_hvp")
    (whole,) = comparison.derivative.outputs("energy_hessian_positions_positions")
    assert len(columns) == 12
    np.testing.assert_allclose(whole.reshape(12, 4, 3), np.stack(columns), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("comparison", "derivative"),
    [
        pytest.param(partial(derivatives.jvp, "cartpole"), "cost_tangent", id="jvp"),
        pytest.param(partial(derivatives.hvp, "cartpole", "cost"), "force_hvp", id="hvp"),
    ],
)
def test_both_sides_see_the_same_model(
    comparison: Callable[..., derivatives.Comparison], derivative: str
) -> None:
    compared = comparison(threads=1)
    values, again = (side.outputs("cost")[0] for side in (compared.derivative, compared.reference))
    np.testing.assert_allclose(values, again, rtol=1e-6)
    assert np.abs(compared.derivative.outputs(derivative)[0]).max() > 0


def test_the_command_prints_a_table() -> None:
    result = CliRunner().invoke(derivatives.app, ["--rounds", "2", "--no-larger"])
    assert result.exit_code == 0, result.output
    for title in ("jvp / forward", "hvp / gradient", "Jacobian / 10 vjps", "Hessian / 24 hvps"):
        assert title in result.output
