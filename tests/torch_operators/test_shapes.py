"""Moving elements about: slices, pads, joins, splits and reshapes, with sizes of zero and one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import integers, normal

F = torch.nn.functional


def cut(*slices: slice) -> Any:
    """The slices of the leading axes; PyTorch has no negative steps."""

    def function(x: Any, *_: Any) -> Any:
        for axis, piece in enumerate(slices):
            positions = torch.arange(x.shape[axis]).numpy()[piece].copy()
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.long))
        return x

    return function


def slicings() -> Iterator[Row]:
    whole = slice(None)
    for starts, ends, axes, steps, slices in [
        ([1], [3], [1], None, (whole, slice(1, 3))),
        ([0, -2], [2, 1000], [0, 2], None, (slice(0, 2), whole, slice(-2, None))),
        ([-1], [-1000], [-1], [-1], (whole, whole, slice(None, None, -1))),
        ([1000, 0], [0, 4], [1, 2], [-2, 3], (whole, slice(1000, 0, -2), slice(0, 4, 3))),
        ([2], [1], [1], None, (whole, slice(2, 1))),
        ([0, 0], [1, 2], None, None, (slice(0, 1), slice(0, 2))),
    ]:
        inputs = {
            "x": normal(2, 3, 4),
            "starts": integers(*starts),
            "ends": integers(*ends),
            "axes": None if axes is None else integers(*axes),
            "steps": None if steps is None else integers(*steps),
        }
        yield Row("Slice", inputs, cut(*slices))


@rows(*slicings())
def test_slices(row: Row) -> None:
    agree(row)


IN_PYTORCH = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def paddings() -> Iterator[Row]:
    for mode, in_pytorch in IN_PYTORCH.items():
        for before, after in ((1, 2), (0, 1), (2, 0), (0, 0)):
            yield Row(
                "Pad",
                {"x": normal(1, 2, 3), "p": integers(0, 0, before, 0, 0, after)},
                lambda x, p, m=in_pytorch, b=before, a=after: F.pad(x, (b, a), m),
                {"mode": mode},
                opset=19,
            )
        yield Row(
            "Pad",
            {"x": normal(1, 1, 3, 4), "p": integers(0, 0, 2, 1, 0, 0, 1, 3)},
            lambda x, p, m=in_pytorch: F.pad(x, (1, 3, 2, 1), m),
            {"mode": mode},
            opset=19,
        )
    value = np.array(1.5)
    for pads in ((1, 2, 0, 1), (-1, 0, 0, -1), (-1, 2, 3, -2), (0, 0, 0, 0)):
        top, left, bottom, right = pads
        yield Row(
            "Pad",
            {"x": normal(2, 3), "p": integers(*pads), "v": value},
            lambda x, p, v, s=(left, right, top, bottom): (
                F.pad(x, s) + v * (1 - F.pad(torch.ones_like(x), s))
            ),
        )
    yield Row("Pad", {"x": normal(2, 0), "p": integers(0, 1, 0, 1)}, lambda x, p: F.pad(x, (1, 1)))
    along = {"x": normal(2, 3, 2), "p": integers(1, -1), "v": None, "axes": integers(-2)}
    yield Row("Pad", along, lambda x, p, axes: F.pad(x, (0, 0, 1, -1)))


@rows(*paddings())
def test_pads(row: Row) -> None:
    agree(row)


@rows(
    Row("Concat", {"a": normal(2, 3), "b": normal(2, 1)}, lambda *t: torch.cat(t, 1), {"axis": 1}),
    Row(
        "Concat",
        {"a": normal(1, 3), "b": normal(0, 3), "c": normal(2, 3)},
        lambda *t: torch.cat(t, 0),
        {"axis": -2},
    ),
    Row("Concat", {"a": normal(3)}, lambda *t: torch.cat(t), {"axis": 0}),
    Row(
        "Split",
        {"x": normal(2, 5)},
        lambda x: x.split([2, 2, 1], 1),
        {"axis": 1, "num_outputs": 3},
        outputs=3,
    ),
    Row(
        "Split",
        {"x": normal(4, 3), "s": integers(3, 0, 1)},
        lambda x, s: x.split([3, 0, 1], 0),
        {"axis": -2},
        outputs=3,
    ),
    Row("Tile", {"x": normal(2, 3), "r": integers(2, 1)}, lambda x, r: x.repeat(2, 1)),
    Row("Tile", {"x": normal(1, 2, 1), "r": integers(3, 2, 2)}, lambda x, r: x.repeat(3, 2, 2)),
    Row("Tile", {"x": normal(2, 3), "r": integers(0, 2)}, lambda x, r: x.repeat(0, 2)),
    Row("Expand", {"x": normal(3, 1), "s": integers(2, 1, 4)}, lambda x, s: x.expand(2, 3, 4)),
    Row("Expand", {"x": normal(2, 3), "s": integers(1)}, lambda x, s: x.clone()),
    Row("Expand", {"x": normal(1), "s": integers(0, 3)}, lambda x, s: x.expand(0, 3)),
    Row("Expand", {"x": np.array(1.5), "s": integers(2)}, lambda x, s: x.expand(2)),
    Row("Transpose", {"x": normal(2, 3, 4)}, lambda x: x.permute(2, 1, 0)),
    Row("Transpose", {"x": normal(2, 0, 1, 3)}, lambda x: x.permute(1, 3, 0, 2), {"perm": [1, 3, 0, 2]}),
    Row("Reshape", {"x": normal(2, 3, 4), "s": integers(0, -1)}, lambda x, s: x.reshape(2, 12)),
    Row("Reshape", {"x": normal(0, 3), "s": integers(3, 0)}, lambda x, s: x.reshape(3, 0), {"allowzero": 1}),
    Row("Reshape", {"x": np.array(2.0), "s": integers(1, 1)}, lambda x, s: x.reshape(1, 1)),
    Row("Flatten", {"x": normal(2, 3, 4)}, lambda x: x.reshape(6, 4), {"axis": -1}),
    Row("Flatten", {"x": normal(2, 3)}, lambda x: x.reshape(1, 6), {"axis": 0}),
    Row("Squeeze", {"x": normal(1, 3, 1), "axes": integers(-1)}, lambda x, axes: x.squeeze(-1)),
    Row("Squeeze", {"x": normal(1, 3, 1)}, lambda x: x.squeeze()),
    Row("Unsqueeze", {"x": normal(3), "axes": integers(-1, 0)}, lambda x, axes: x[None, :, None]),
    Row(
        "DepthToSpace",
        {"x": normal(1, 12, 2, 1)},
        lambda x: F.pixel_shuffle(x, 2),
        {"blocksize": 2, "mode": "CRD"},
    ),
    Row(
        "DepthToSpace",
        {"x": normal(2, 8, 1, 3)},
        lambda x: x.reshape(2, 2, 2, 2, 1, 3).permute(0, 3, 4, 1, 5, 2).reshape(2, 2, 2, 6),
        {"blocksize": 2},
    ),
    Row(
        "SpaceToDepth",
        {"x": normal(2, 2, 4, 6)},
        lambda x: x.reshape(2, 2, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 8, 2, 3),
        {"blocksize": 2},
    ),
    Row(
        "CenterCropPad", {"x": normal(3, 4), "s": integers(5, 2)}, lambda x, s: F.pad(x[:, 1:3], (0, 0, 1, 1))
    ),
    Row(
        "CenterCropPad",
        {"x": normal(2, 4), "s": integers(3)},
        lambda x, s: x[:, :3],
        {"axes": [-1]},
    ),
    Row("CastLike", {"x": normal(2), "like": normal(1)}, lambda x, like: x.clone() + 0 * like.sum()),
)
def test_rearrangements(row: Row) -> None:
    agree(row)


@pytest.mark.parametrize("diagonal", [-2, -1, 0, 1, 5])
@pytest.mark.parametrize("upper", [0, 1])
def test_triangles(upper: int, diagonal: int) -> None:
    keep = torch.triu if upper else torch.tril
    inputs = {"x": normal(2, 3, 4), "k": np.array(diagonal)}
    agree(Row("Trilu", inputs, lambda x, k: keep(x, diagonal), {"upper": upper}))


@rows(
    Row(
        "Range",
        {"a": np.array(0.5), "b": np.array(3.1), "d": np.array(0.7)},
        lambda a, b, d: a + d * torch.arange(4),
    ),
    Row(
        "Range",
        {"a": np.array(2.0), "b": np.array(0.1), "d": np.array(-0.5)},
        lambda a, b, d: a + d * torch.arange(4),
    ),
    Row(
        "Range",
        {"a": np.array(2.0), "b": np.array(1.0), "d": np.array(0.5)},
        lambda a, b, d: a + d * torch.arange(0),
    ),
)
def test_range(row: Row) -> None:
    agree(row)
