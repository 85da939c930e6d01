"""Averages of an image's features over the pyramid pooling's bins, from the whole image or parts.

They are those of `nn.AdaptiveAvgPool2d` at every scale, but more exact: torch adds up the pixels of
a bin one after the other, which is off by 1e-3 for an image of a megapixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class BinSums:
    """Sums over all pairs of a row's and a column's bin, at all scales at once.

    Args:
        height, width: the image's size.
        scales: the number of bins on an axis at each scale.
        device: of the features.
    """

    def __init__(
        self, height: int, width: int, scales: Sequence[int], device: torch.device
    ) -> None:
        self.scales = scales
        self.rows = _bin_members(height, scales).to(device)
        self.columns = _bin_members(width, scales).to(device)

    def of(self, h: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """Sum the features (N, C, h, w) of a part of the image: (N, all bins, all bins, C), fp32.

        Args:
            h: the features.
            top, left: where the part lies.
        """
        rows = self.rows[:, top : top + h.shape[2]]
        columns = self.columns[:, left : left + h.shape[3]]
        with torch.autocast(h.device.type, enabled=False):
            over_columns = columns @ h.float().permute(0, 2, 3, 1)  # (N, h, all bins, C)
            return (rows @ over_columns.flatten(2)).unflatten(2, over_columns.shape[2:])

    def averages(self, sums: Tensor) -> list[Tensor]:
        """Turn the whole image's sums into averages (N, C, bins, bins) for each scale."""
        areas = self.rows.sum(1)[:, None] * self.columns.sum(1)
        means = (sums / areas[..., None].to(sums)).permute(0, 3, 1, 2)
        scales, start = [], 0
        for bins in self.scales:
            scales.append(means[..., start : start + bins, start : start + bins])
            start += bins
        return scales


def _bin_members(size: int, scales: Sequence[int]) -> Tensor:
    """Which pixels of an axis belong to which bin: (all scales' bins, size) of 0 and 1."""
    members = torch.zeros(sum(scales), size)
    spans = [(i * size // bins, -(-(i + 1) * size // bins)) for bins in scales for i in range(bins)]
    for row, (start, stop) in zip(members, spans, strict=True):
        row[start:stop] = 1
    return members
