"""Enhance photographs of any size exactly, tile by tile (method.md, 1).

The pyramid pooling sees the whole image, so tiles by themselves would change the result. Two
passes don't: the first sums up the pooled features, tile by tile; the second computes each tile's
light map from those and from the tile with a halo around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from models.enhancer import POOL_BINS, UNetEnhancer, Window, enhance

ENCODE_HALO = 5  # pixels that `UNetEnhancer.encode`'s five convolutions see around a pixel
DECODE_HALO = 12  # and `decode`'s twelve
CPU_TILE = 512  # fastest measured on CPU (benchmarks/enhance.py)
GPU_TILE = 2048
FIRST_PASS = 0.12  # its share of the arithmetic

Reader = Callable[[Window], Tensor]  # a window's pixels: (1, 3, h, w) in [0, 1], on the device
Progress = Callable[[float], object]  # is told how many pixels' worth of work is newly done


def default_tile(device: torch.device) -> int:
    """The side in pixels of the tiles that are fastest on a device."""
    return CPU_TILE if device.type == "cpu" else GPU_TILE


def split_into_tiles(height: int, width: int, tile: int) -> list[Window]:
    """Split an image into tiles of nearly equal sizes, none longer than `tile` (0: one tile)."""

    def edges(size: int) -> list[int]:
        count = -(-size // tile) if tile else 1
        return [i * size // count for i in range(count + 1)]

    rows, columns = edges(height), edges(width)
    return [
        Window(top, left, bottom, right, height, width)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def expand(window: Window, halo: int) -> Window:
    """Add `halo` pixels on each side, as far as the image goes."""
    return Window(
        max(window.top - halo, 0),
        max(window.left - halo, 0),
        min(window.bottom + halo, window.height),
        min(window.right + halo, window.width),
        window.height,
        window.width,
    )


class PooledSums:
    """The pyramid pooling's averages of a whole image, summed up tile by tile in float64."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.rows = _bin_members(height, device)
        self.columns = _bin_members(width, device)
        self.sums: Tensor | float = 0.0

    def add(self, h: Tensor, window: Window) -> None:
        """Add a tile's features (1, C, h, w); each pixel of the image must come exactly once."""
        rows = self.rows[:, window.top : window.bottom]
        columns = self.columns[:, window.left : window.right]
        over_columns = columns @ h[0].float().permute(1, 2, 0)  # (h, all bins, C)
        over_rows = rows.double() @ over_columns.flatten(1).double()
        self.sums = self.sums + over_rows.unflatten(1, over_columns.shape[1:])

    def averages(self) -> list[Tensor]:
        """For each scale (1, C, bins, bins), as `PyramidPooling.pool` computes them."""
        areas = self.rows.double().sum(1)[:, None] * self.columns.double().sum(1)
        means = (self.sums / areas[..., None]).float().permute(2, 0, 1)[None]
        starts = np.cumsum((0, *POOL_BINS))
        return [
            means[..., start : start + bins, start : start + bins]
            for start, bins in zip(starts, POOL_BINS, strict=False)
        ]


def _bin_members(size: int, device: torch.device) -> Tensor:
    """Which pixels of an axis belong to which bin: (all scales' bins, size) of 0 and 1."""
    members = torch.zeros(sum(POOL_BINS), size)
    spans = [
        (i * size // bins, -(-(i + 1) * size // bins)) for bins in POOL_BINS for i in range(bins)
    ]
    for row, (start, stop) in zip(members, spans, strict=True):
        row[start:stop] = 1
    return members.to(device)


def light_map_tiles(
    enhancer: UNetEnhancer,
    read: Reader,
    height: int,
    width: int,
    tile: int,
    progress: Progress | None = None,
) -> Iterator[tuple[Window, Tensor, Tensor]]:
    """Compute an image's light map, tile by tile, exactly as in one go.

    Args:
        enhancer: the network.
        read: gives any window of the image.
        height, width: the image's size.
        tile: the tiles' side in pixels; 0 for the whole image in one go.
        progress: is called after each tile of each pass; the sum is height * width.

    Yields:
        A tile, its pixels (1, 3, h, w) and its light map (1, 1, h, w); the tiles cover the image.
    """
    tiles = split_into_tiles(height, width, tile)
    if len(tiles) == 1:
        x = read(tiles[0])
        yield tiles[0], x, enhancer(x)
        if progress:
            progress(height * width)
        return
    sums = None
    for inner in tiles:
        outer = expand(inner, ENCODE_HALO)
        h, window = enhancer.encode(read(outer), outer)
        if sums is None:
            sums = PooledSums(height, width, h.device)
        sums.add(inner.crop(h, of=window), inner)
        if progress:
            progress(FIRST_PASS * _area(inner))
    pooled = sums.averages()
    for inner in tiles:
        outer = expand(inner, ENCODE_HALO + DECODE_HALO)
        x = read(outer)
        h, window = enhancer.encode(x, outer)
        light_map, window = enhancer.decode(h, window, pooled)
        yield inner, inner.crop(x, of=outer), inner.crop(light_map, of=window)
        if progress:
            progress((1 - FIRST_PASS) * _area(inner))


def _area(window: Window) -> int:
    return (window.bottom - window.top) * (window.right - window.left)


def light_map_tiled(enhancer: UNetEnhancer, image: Tensor, tile: int | None = None) -> Tensor:
    """Compute an image's light map tile by tile: `enhancer(image)` in bounded memory.

    Args:
        enhancer: the network.
        image: (1, 3, H, W) in [0, 1].
        tile: the tiles' side in pixels; None for the fastest, 0 for the whole image in one go.

    Returns:
        (1, 1, H, W), >= 0; equal to `enhancer(image)` but for rounding.
    """
    height, width = image.shape[-2:]
    if tile is None:
        tile = default_tile(image.device)
    whole = Window.whole(image)
    result = image.new_empty(1, 1, height, width)
    with torch.inference_mode():
        for window, _, light_map in light_map_tiles(
            enhancer, lambda window: window.crop(image, of=whole), height, width, tile
        ):
            window.crop(result, of=whole).copy_(light_map)
    return result


def enhance_photo(
    enhancer: UNetEnhancer,
    pixels: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    tile: int | None = None,
    amp: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Enhance a photograph; only tiles of it are ever converted to floats.

    Args:
        enhancer: the network, on `device`.
        pixels: (H, W, 3), uint8 or uint16.
        device: where to compute.
        tile: the tiles' side in pixels; None for the fastest, 0 for the whole photo in one go.
        amp: compute in bfloat16 where the device's autocast does; faster on a GPU, less exact.
        progress: is called after each tile of each pass; the sum is H * W.

    Returns:
        (H, W, 3) of the same type, rounded to nearest; black pixels stay black.
    """
    device = torch.device(device)
    height, width = pixels.shape[:2]
    peak = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)

    def read(window: Window) -> Tensor:
        part = pixels[window.top : window.bottom, window.left : window.right]
        x = torch.from_numpy(part.astype(np.float32)).to(device)  # (h, w, 3)
        return x.div_(peak).permute(2, 0, 1)[None]  # channels-last in memory

    if tile is None:
        tile = default_tile(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for window, x, light_map in light_map_tiles(enhancer, read, height, width, tile, progress):
            y = enhance(x, light_map).mul_(peak).round_()
            result[window.top : window.bottom, window.left : window.right] = (
                y[0].permute(1, 2, 0).cpu().numpy()
            )
    return result
