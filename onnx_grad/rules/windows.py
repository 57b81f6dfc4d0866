"""Windows sliding over the spatial axes of an image: the geometry of convolution and pooling.

An image [N, C, I…] is read through windows. Window o of an axis, o = 0 … O − 1, covers the positions
o·stride + t·dilation − begin, t = 0 … kernel − 1; what lies outside of the image is padding. There is one
response per window, in a tensor [N, M, O…]. `Conv` and pooling map images to responses, `ConvTranspose`
responses to images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad import known

Sizes = tuple[int, ...]
Known = TypeVar("Known")

# As an end in `Slice`: behind the last element of any axis.
TO_THE_END = 2**63 - 1
# The same for steps backwards.
BEFORE_THE_BEGINNING = -(2**63) + 1


@dataclass(frozen=True)
class Windows:
    """Windows on the spatial axes, as far as they are known while transforming.

    Attributes:
        positions: The image's sizes I; `None` when they are known only at run time.
        count: How many windows there are, O, likewise.
        kernel: Taps of a window along each axis; `None` when only the weights tell, at run time.
        strides: Distance of neighbouring windows; `None` when the rank is unknown, and then all are 1.
        dilations: Distance of neighbouring taps, likewise.
        begin: Padding before the image; empty for none; `None` when it depends on sizes at run time.
        end: Padding behind the image, likewise.
        spare: Positions that a `ConvTranspose` adds behind the reach of its windows, its attribute
            `output_padding`; empty for none.
        odd_at_begin: Whether an odd total of padding has its larger half before the image.
    """

    positions: Sizes | None
    count: Sizes | None
    kernel: Sizes | None
    strides: Sizes | None
    dilations: Sizes | None
    begin: Sizes | None = None
    end: Sizes | None = None
    spare: Sizes = ()
    odd_at_begin: bool = False

    def with_padding(self, begin: Sizes, end: Sizes) -> Windows:
        """The same windows with this padding."""
        return replace(self, begin=begin, end=end)

    def with_count(self, count: Sizes | None) -> Windows:
        """The same windows, so many of them."""
        return replace(self, count=count)

    def with_total_padding(self, total: Sizes | None) -> Windows:
        """The same windows with `total` padding shared out between the two sides; unchanged for `None`."""
        if total is None:
            return self
        # Rounded towards zero: a negative total crops the image.
        begin = tuple(int((t + self.odd_at_begin) / 2) for t in total)
        return self.with_padding(begin, tuple(t - b for t, b in zip(total, begin, strict=True)))

    @property
    def rank(self) -> int | None:
        """How many axes the windows slide along."""
        return None if self.strides is None else len(self.strides)

    @property
    def extent(self) -> Sizes | None:
        """Positions from the first to the last tap of a window, along each axis."""
        if self.kernel is None or self.dilations is None:
            return None
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> Sizes | None:
        """The attribute `pads`; `None`, to leave it out, where it is zero or known only at run time."""
        pads = (self.begin or ()) + (self.end or ())
        return pads if any(pads) else None

    @property
    def dense(self) -> bool:
        """Whether neighbouring windows are one position apart along every axis."""
        return self.strides is None or all(s == 1 for s in self.strides)

    @property
    def behind(self) -> Sizes | None:
        """Padded positions that no window reaches, behind the last one; empty for none, `None` if unknown."""
        if self.begin is None or self.end is None:
            return None
        if self.dense:
            return ()
        if self.positions is None or self.count is None or self.extent is None or self.strides is None:
            return None
        padded = (i + b + e for i, b, e in zip(self.positions, self.begin, self.end, strict=True))
        axes = zip(padded, self.count, self.strides, self.extent, strict=True)
        return tuple(i - (o - 1) * s - x for i, o, s, x in axes)


def spatial_sizes(value: ir.Value) -> Sizes | None:
    """The sizes behind batch and channels, when all are known integers."""
    dims = known.dimensions(value)
    if dims is None:
        return None
    integers = tuple(d for d in dims[2:] if isinstance(d, int))
    return integers if len(integers) == len(dims) - 2 else None


def spatial_rank(node: ir.Node) -> int | None:
    """How many axes the windows of `node` slide along; `None` when nothing tells."""
    for name, per_axis in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 2)):
        if name in node.attributes:
            return len(node.attributes[name].as_ints()) // per_axis
    for value in (*node.inputs[:2], node.outputs[0]):
        rank = None if value is None else known.rank(value)
        if rank is not None:
            return rank - 2
    return None


def sizes_attribute(node: ir.Node, name: str, default: int, rank: int | None) -> Sizes | None:
    """An attribute with one integer per axis, `default` everywhere when it is absent."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    return None if rank is None else (default,) * rank


def explicit_padding(node: ir.Node, rank: int | None) -> tuple[Sizes, Sizes]:
    """The attribute `pads` before and behind the image; zeros when absent, nothing for an unknown rank."""
    pads = tuple(node.attributes.get_ints("pads", ()))
    if not pads or auto_pad(node) == "VALID":
        pads = (0,) * (2 * (rank or 0))
    return pads[: len(pads) // 2], pads[len(pads) // 2 :]


def auto_pad(node: ir.Node) -> str:
    """The attribute `auto_pad`: NOTSET, VALID, SAME_UPPER or SAME_LOWER."""
    return node.attributes.get_string("auto_pad", "NOTSET")


def same_padding(windows: Windows) -> Sizes | None:
    """The total padding with which a window starts at every stride-th position; `None` if unknown."""
    if windows.extent is None or windows.strides is None:
        return None
    if windows.dense:
        return tuple(x - 1 for x in windows.extent)
    if windows.positions is None:
        return None
    axes = zip(windows.positions, windows.strides, windows.extent, strict=True)
    return tuple((i - 1) // s * s + x - i for i, s, x in axes)


def tap_positions(windows: Windows, axis: int) -> npt.NDArray[np.int64]:
    """Where the taps of each window along `axis` lie, [O, kernel]; some of them outside of the image."""
    first = np.arange(given(windows.count)[axis]) * given(windows.strides)[axis] - given(windows.begin)[axis]
    return first[:, None] + np.arange(given(windows.kernel)[axis]) * given(windows.dilations)[axis]


def given(sizes: Known | None) -> Known:
    """What the caller has made sure to be known."""
    assert sizes is not None
    return sizes
