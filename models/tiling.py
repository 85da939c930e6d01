"""Enhance photographs of any size exactly, tile by tile (method.md, 1).

The pyramid pooling sees the whole image, so tiles by themselves would change the result. Two
passes don't: the first sums up the pooled features, tile by tile; the second computes each tile's
light map from those and from the tile with a halo around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.enhancer import POOL_BINS, UNetEnhancer, Window, enhance
from models.pooling import BinSums

ENCODE_HALO = 5  # pixels that `UNetEnhancer.encode`'s five convolutions see around a pixel
DECODE_HALO = 12  # and `decode`'s twelve
CPU_TILE = 448  # as fast as 512 but for 2 % more halo, in less memory (benchmarks/enhance.py)
GPU_TILE = 2048
FIRST_PASS = 0.12  # its share of the arithmetic

Reader = Callable[[Window], Tensor]  # a window's pixels: (1, 3, h, w) in [0, 1], on the device
Progress = Callable[[float], object]  # is told how many pixels' worth of work is newly done


def default_tile(device: torch.device) -> int:
    """The side in pixels of the tiles that are fastest on a device."""
    return CPU_TILE if device.type == "cpu" else GPU_TILE


def split_into_tiles(height: int, width: int, tile: int) -> list[Window]:
    """Split an image into tiles of at most `tile` pixels a side (0: one tile).

    All have the same size, since the convolutions' code and memory are made for a size: the last
    ones may reach beyond the image by a few pixels.
    """

    def starts(size: int) -> tuple[range, int]:
        count = -(-size // tile) if tile else 1
        side = -(-size // count)
        return range(0, size, side), side

    (rows, tile_height), (columns, tile_width) = starts(height), starts(width)
    return [
        Window(top, left, top + tile_height, left + tile_width, height, width)
        for top in rows
        for left in columns
    ]


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

    Raises:
        FloatingPointError: a light map is not finite; its weights are too large.
    """
    tiles = split_into_tiles(height, width, tile)

    def encode(tile: Window, halo: int) -> tuple[Tensor, Window]:
        return enhancer.encode(_read_with_halo(read, tile.expand(halo)), tile.expand(halo))

    # Pool the whole image; a single tile's features serve both passes:
    bins = BinSums(height, width, POOL_BINS, next(enhancer.parameters()).device)
    total = 0.0  # float64, on the CPU since not every device has it
    for tile in tiles:
        h, window = encode(tile, ENCODE_HALO if len(tiles) > 1 else ENCODE_HALO + DECODE_HALO)
        inner = tile.inside()
        total = total + bins.of(inner.crop(h, of=window), inner.top, inner.left).cpu().double()
        if progress:
            progress(FIRST_PASS * inner.area)
    pooled = bins.averages(total.float().to(h.device))

    # Compute the light map:
    for tile in tiles:
        if len(tiles) > 1:
            h, window = encode(tile, ENCODE_HALO + DECODE_HALO)
        light_map, window = enhancer.decode(h, window, pooled)
        if not light_map.isfinite().all():
            raise FloatingPointError("the light map is not finite")
        inner = tile.inside()
        yield inner, read(inner), inner.crop(light_map, of=window)
        if progress:
            progress((1 - FIRST_PASS) * inner.area)


def _read_with_halo(read: Reader, window: Window) -> Tensor:
    """Read a window and put zeros beyond the image's border."""
    inner = window.inside()
    x = F.pad(
        read(inner),
        (
            inner.left - window.left,
            window.right - inner.right,
            inner.top - window.top,
            window.bottom - inner.bottom,
        ),
    )
    return x.contiguous(memory_format=torch.channels_last)


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
    whole = Window.whole(height, width)
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
