"""The V curve: the error of a finite difference against its step.

Large steps suffer from truncation, small ones from rounding. That the error falls by the square of the step
before it rises again shows the gradient to be right beyond what any single step can show.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from onnx_grad.errors import OutputError, RuntimeUnavailableError

if TYPE_CHECKING:
    from onnx_grad.checking.report import GradientReport

MOST_CURVES = 10


def plot_curves(report: GradientReport, path: str | os.PathLike[str]) -> None:
    """Write the curves of `report` to a PNG at `path`; of many tensors, those with the largest errors.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    figure = _figure()
    axes = figure.subplots()
    tensors = [tensor for tensor in report.tensors if any(error > 0 for _, error in tensor.curve)]
    tensors.sort(key=lambda tensor: tensor.max_rel_error, reverse=True)
    for tensor in tensors[:MOST_CURVES]:
        points = [(step, error) for step, error in tensor.curve if error > 0]
        steps, errors = zip(*points, strict=True)
        label = tensor.name if tensor.passed else f"{tensor.name} (fails)"
        axes.plot(steps, errors, marker="o", markersize=4, linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("step, relative to the size of the tensor")
    axes.set_ylabel("error of the central difference, relative to the gradient")
    verdict = "pass" if report.passed else "fail"
    axes.set_title(f"{report.model}: {verdict}")
    axes.grid(visible=True, which="major", alpha=0.3)
    if tensors:
        hidden = len(tensors) - MOST_CURVES
        title = f"the worst of {len(tensors)}" if hidden > 0 else None
        figure.legend(loc="outside right upper", fontsize="small", title=title)
    else:
        axes.text(0.5, 0.5, "no error at any step", transform=axes.transAxes, ha="center")
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise OutputError(f"cannot write the plot to '{os.fspath(path)}': {error.strerror}") from error


def _figure() -> Any:
    """A figure that needs no display."""
    try:
        figure = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"plotting needs matplotlib, which cannot be imported ({error}); "
            "install it with: pip install 'onnx-grad[plot]'"
        ) from error
    return figure.Figure(figsize=(9.0, 5.0), layout="constrained")
