"""The recipes of the documentation run, print what they tell, and find what is known by other means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.pages import ROOT, run_commands, run_page


def names_of(page: str) -> dict[str, Any]:
    """What the page leaves, once it has printed what it tells."""
    run = run_page(page)
    assert run.told
    assert run.printed == run.told
    return run.names


def test_forces() -> None:
    names = names_of("forces.md")
    hessian = names["hessian"].reshape(24, 24)
    apart = names["apart"].ravel()
    np.testing.assert_allclose(names["stiffness"], apart @ hessian @ apart, rtol=1e-4)
    eigenvalues = np.linalg.eigvalsh(hessian)
    # At rest: nothing is unstable, and three translations and three rotations cost nothing.
    assert (np.abs(eigenvalues) < 1e-3 * eigenvalues[-1]).sum() == 6
    assert eigenvalues[6] > 0
    np.testing.assert_allclose(names["frequency"] ** 2, eigenvalues[-1], rtol=1e-4)


def test_linearization() -> None:
    names = names_of("linearization.md")
    np.testing.assert_allclose(names["As"][-1].reshape(4, 4), names["A"], atol=1e-4)
    # Without the gain, the pole falls.
    state = np.array([[0.0, 0.0, 0.4, 0.0]], np.float32)
    for _ in range(250):
        state = names["dynamics"](state=state, force=np.zeros((1, 1), np.float32)).values["next_state"]
    assert np.abs(state).max() > 1


def test_per_sample_gradients() -> None:
    names = names_of("per_sample_gradients.md")
    f = onnx_grad.GradientFunction(ROOT / "models" / "digits_mlp.onnx", wrt="parameters")
    whole = f(pixels=names["pixels"], cotangents={"logits": names["cotangent"]}).gradients
    assert set(whole) == set(names["gradients"])
    for x, gradient in whole.items():
        np.testing.assert_allclose(names["gradients"][x].sum(axis=0), gradient, rtol=1e-4, atol=1e-6)
    length = np.sqrt(sum(np.square(g).sum() for g in names["clipped"].values()))
    assert 0 < length <= names["bound"]


def test_gauss_newton() -> None:
    names = names_of("gauss_newton.md")
    np.testing.assert_allclose(names["p"], [1.0, 0.1, 0.5], rtol=1e-4)
    assert len(names["errors"]) <= 9
    assert names["errors"][-1] < 1e-5 * names["errors"][0]
    last, before, first = names["errors"][5], names["errors"][4], names["errors"][3]
    # Near the end each step is worth far more than the one before: convergence is quadratic.
    assert last / before < 0.2 * before / first


@pytest.mark.parametrize("page", ["forces.md", "linearization.md"])
def test_commands(page: str, tmp_path: Path) -> None:
    run_commands(page, tmp_path)
    assert list(written(tmp_path))
    for model in written(tmp_path):
        onnx_grad.GradientFunction.from_gradient_model(model)


def written(folder: Path) -> Iterator[Path]:
    """The models that were written there."""
    return folder.glob("*.onnx")
