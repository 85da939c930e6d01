"""Averages of an image's features over bins, and coarse maps brought back to the image's size.

Both are products of small matrices with the rows and the columns, so that a crop of the image can
give its share of the averages, and be given the pixels of the upsampled maps that lie in it. For a
whole image they are `nn.AdaptiveAvgPool2d`, without the error that grows with the image in torch's
running sum (3.6e-5 at 12 megapixels), and bilinear upsampling with aligned corners.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Span(NamedTuple):
    """Pixels `start` to `stop`, exclusive, of an axis of `size` pixels."""

    start: int
    stop: int
    size: int

    def expand(self, pixels: int) -> Span:
        """Add so many pixels at both ends, but none beyond the axis."""
        return Span(max(self.start - pixels, 0), min(self.stop + pixels, self.size), self.size)


class Crop(NamedTuple):
    """Rows and columns that are cut out of an image."""

    rows: Span
    columns: Span

    @classmethod
    def whole(cls, height: int, width: int) -> Crop:
        """The crop that is the image."""
        return cls(Span(0, height, height), Span(0, width, width))

    @property
    def area(self) -> int:
        """How many pixels it holds."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def expand(self, pixels: int) -> Crop:
        """Add so many pixels on each side, but none beyond the image."""
        return Crop(self.rows.expand(pixels), self.columns.expand(pixels))

    def within(self, outer: Crop) -> tuple[slice, slice]:
        """Where its rows and columns are in an array that holds the crop `outer`."""
        rows, columns = (
            slice(inner.start - around.start, inner.stop - around.start)
            for inner, around in zip(self, outer, strict=True)
        )
        return rows, columns

    def cut(self, images: Tensor, outer: Crop) -> Tensor:
        """Cut this crop out of `images` (..., h, w), which hold the crop `outer`."""
        return images[(..., *self.within(outer))]


class ExactAveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d`, but exact for large images: (N, C, H, W) to (N, C, bins, bins)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, h: Tensor, crop: Crop | None = None) -> Tensor:
        """Average features over the bins of the image.

        Args:
            h: (N, C, H, W) of the whole image, or of a crop.
            crop: where `h` lies; None for the whole image.

        Returns:
            (N, C, bins, bins) in fp32 or more, under autocast too; for a crop, its share of the
            image's averages: the shares of crops that tile the image add up to them.
        """
        rows, columns = crop or Crop.whole(*h.shape[-2:])
        return _multiply(_bin_weights(rows, self.bins), _bin_weights(columns, self.bins), h)


def upsample(maps: Tensor, crop: Crop) -> Tensor:
    """Upsample maps bilinearly to an image's size, corners aligned, and crop them.

    Args:
        maps: (N, C, bins, bins), in any floating type.
        crop: the part of the image to return.

    Returns:
        (N, C, h, w) of the same type.
    """
    bins = maps.shape[-1]
    rows, columns = (_interpolation_weights(span, bins) for span in crop)
    return _multiply(rows, columns, maps).to(maps.dtype)


def _multiply(rows: Tensor, columns: Tensor, images: Tensor) -> Tensor:
    """Compute `rows @ image @ columns.T` for all images (N, C, H, W); fp32 under autocast, too.

    In channels-last order, both for speed and as the result's.
    """
    with torch.autocast(images.device.type, enabled=False):
        x = images.to(torch.promote_types(images.dtype, torch.float32)).permute(0, 2, 3, 1)
        x = columns.to(x) @ x  # (N, H, W', C)
        return (rows.to(x) @ x.flatten(2)).unflatten(2, x.shape[2:]).permute(0, 3, 1, 2)


def _bin_weights(span: Span, bins: int) -> Tensor:
    """Each pixel's weight in the average of each bin: (bins, pixels), float64.

    As torch does, bin i begins at floor(i * size / bins) and ends at ceil((i + 1) * size / bins).
    """
    index = torch.arange(bins)[:, None]
    first = index * span.size // bins
    end = ((index + 1) * span.size + bins - 1) // bins
    pixel = torch.arange(span.start, span.stop)
    return ((pixel >= first) & (pixel < end)).double() / (end - first)


def _interpolation_weights(span: Span, bins: int) -> Tensor:
    """The weight of each value of an axis in each interpolated pixel: (pixels, bins), float64."""
    pixel = torch.arange(span.start, span.stop, dtype=torch.float64)
    position = pixel * (bins - 1) / max(span.size - 1, 1)
    return (1 - (position[:, None] - torch.arange(bins)).abs()).clamp(min=0)
