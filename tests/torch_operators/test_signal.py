"""Fourier transforms: real and complex, forward and back, cut and padded, one-sided; affine grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import integers, normal

# ONNX Runtime's kernel has its roots of unity in float32.
KERNEL = 5e-7


def transformed(x: Any, axis: int, length: int | None, inverse: bool, onesided: bool) -> Any:
    """The transform of a tensor whose last axis holds real numbers, or their real and imaginary parts."""
    z = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    axis = axis if axis >= 0 else axis + 1
    y = (torch.fft.ifft if inverse else torch.fft.fft)(z, n=length, dim=axis)
    if onesided:
        y = y.narrow(axis, 0, y.shape[axis] // 2 + 1)
    return torch.view_as_real(y.resolve_conj())


def transforms() -> Iterator[Row]:
    for shape, axis in (((2, 5, 1), 1), ((2, 5, 2), 1), ((4, 2, 2), 0), ((2, 3, 4, 1), -2), ((1, 1, 2), -2)):
        for length in (None, 3, 7):
            for inverse, onesided in ((0, 0), (1, 0), (0, 1)):
                if onesided and shape[-1] == 2:
                    continue
                inputs = {
                    "x": normal(*shape),
                    "n": None if length is None else np.array(length),
                    "axis": np.array(axis),
                }
                function = _transform(axis, length, bool(inverse), bool(onesided))
                attributes = {"inverse": inverse, "onesided": onesided}
                yield Row("DFT", inputs, function, attributes, opset=20, rtol=KERNEL)
    older = {"x": normal(2, 5, 1), "n": np.array(4)}
    yield Row("DFT", older, _transform(1, 4, False, True), {"onesided": 1}, opset=17, rtol=KERNEL)
    yield Row(
        "DFT",
        {"x": normal(2, 3, 5, 2)},
        _transform(2, None, True, False),
        {"axis": 2, "inverse": 1},
        opset=17,
        rtol=KERNEL,
    )


def _transform(axis: int, length: int | None, inverse: bool, onesided: bool) -> Callable[..., Any]:
    return lambda x, *_: transformed(x, axis, length, inverse, onesided)


@rows(*transforms())
def test_fourier_transform(row: Row) -> None:
    agree(row)


def short_time(signal: Any, step: int, window: Any, length: int, onesided: bool) -> Any:
    """Frames of the signal, windowed and transformed."""
    real = signal[..., 0] if signal.ndim == 3 else signal
    frames = real.unfold(1, length, step)
    frames = frames if window is None else frames * window
    return transformed(frames[..., None], 2, None, False, onesided)


@rows(
    *(
        Row(
            "STFT",
            {"x": normal(2, 11, 1), "step": np.array(step), "window": normal(4, seed=1), "n": length},
            lambda x, step, window, *_, onesided=onesided: short_time(
                x, int(step), window, 4, bool(onesided)
            ),
            {"onesided": onesided},
        )
        for onesided in (0, 1)
        for step in (2, 3)
        for length in (None, np.array(4))
    ),
    Row(
        "STFT",
        {"x": normal(2, 11, 1), "step": np.array(2), "window": None, "n": np.array(5)},
        lambda x, step, n: short_time(x, 2, None, 5, True),
        rtol=KERNEL,
    ),
    Row(
        "STFT",
        {"x": normal(1, 9, 2), "step": np.array(2), "window": normal(4, seed=1)},
        lambda x, step, window: torch.view_as_real(
            torch.fft.fft(torch.view_as_complex(x).unfold(1, 4, 2) * window, dim=-1)
        ),
        {"onesided": 0},
    ),
)
def test_short_time_fourier_transform(row: Row) -> None:
    agree(row)


@rows(
    *(
        Row(
            "AffineGrid",
            {"theta": normal(2, *theta), "size": integers(*size)},
            lambda theta, size, size_=size, align=align: torch.nn.functional.affine_grid(
                theta, list(size_), bool(align)
            ),
            {"align_corners": align},
            opset=20,
            single=True,
        )
        for theta, size in (((2, 3), (2, 1, 3, 4)), ((3, 4), (2, 1, 2, 3, 2)))
        for align in (0, 1)
    )
)
def test_affine_grid(row: Row) -> None:
    agree(row)
