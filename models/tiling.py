"""Enhance photographs of any size exactly, tile by tile (docs/method.md 1).

A tile goes through the network with a halo around it, as wide as the convolutions see but clipped
to the image: there their own padding is right, and at a cut it spoils no pixel of the tile itself.
Only the pyramid pooling sees the whole image. So a first pass adds up its averages, tile by tile,
and a second one computes the light map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from models.enhancer import UNetEnhancer, enhance
from models.pooling import Crop, Span

ENCODE_HALO = 5  # pixels that `UNetEnhancer.encode`'s five convolutions see around a pixel
DECODE_HALO = 12  # and `decode`'s twelve
CPU_TILE = 384  # a larger one computes less halo, but 24 megapixels no longer fit into 1 GB
GPU_TILE = 2048
FIRST_PASS = 0.12  # its share of the arithmetic

Reader = Callable[[Crop], Tensor]  # a crop's pixels: (1, 3, h, w) in [0, 1], on the device
Progress = Callable[[float], object]  # is told how many pixels' worth of work is newly done


def default_tile(device: torch.device) -> int:
    """The side in pixels of the tiles that are fastest on a device."""
    return CPU_TILE if device.type == "cpu" else GPU_TILE


def split_into_tiles(height: int, width: int, tile: int) -> list[Crop]:
    """Split an image into tiles of about the same size, at most `tile` pixels a side (0: one)."""

    def split(size: int) -> list[Span]:
        count = -(-size // tile) if tile else 1
        side = -(-size // count)
        return [Span(start, min(start + side, size), size) for start in range(0, size, side)]

    return [Crop(rows, columns) for rows in split(height) for columns in split(width)]


def light_map_tiles(
    enhancer: UNetEnhancer,
    read: Reader,
    height: int,
    width: int,
    tile: int,
    progress: Progress | None = None,
) -> Iterator[tuple[Crop, Tensor, Tensor]]:
    """Compute an image's light map, tile by tile, exactly as in one go.

    Args:
        enhancer: the network.
        read: gives any crop of the image.
        height, width: the image's size.
        tile: the tiles' side in pixels; 0 for the whole image in one go.
        progress: is called after each tile of each pass; the sum is height * width.

    Yields:
        A tile, its pixels (1, 3, h, w) and its light map (1, 1, h, w); the tiles cover the image.

    Raises:
        FloatingPointError: a light map is not finite; its weights are too large.
    """
    tiles = split_into_tiles(height, width, tile)
    report = progress or (lambda pixels: None)
    averages = None  # a single tile is the image: the network sees all that it needs
    if len(tiles) > 1:
        averages = image_averages(enhancer, read, tiles, report)
    for tile in tiles:
        near = tile.expand(DECODE_HALO)
        far = near.expand(ENCODE_HALO)
        x = read(far)
        light_map = enhancer.decode(near.cut(enhancer.encode(x), far), near, averages)
        if not light_map.isfinite().all():
            raise FloatingPointError("the light map is not finite")
        yield tile, tile.cut(x, far), tile.cut(light_map, near)
        report((1 if averages is None else 1 - FIRST_PASS) * tile.area)


def image_averages(
    enhancer: UNetEnhancer, read: Reader, tiles: list[Crop], report: Progress
) -> list[Tensor]:
    """Average the features of an image given in tiles over the pyramid pooling's bins.

    Returns:
        (1, 32, bins, bins) for each of the scales.
    """
    pools = [pool for pool, *_ in enhancer.PPM1.features]
    totals = [0.0] * len(pools)  # float64, on the CPU since not every device has it
    for tile in tiles:
        near = tile.expand(ENCODE_HALO)
        h = tile.cut(enhancer.encode(read(near)), near)
        shares = [pool(h, tile) for pool in pools]
        totals = [total + share.cpu().double() for total, share in zip(totals, shares, strict=True)]
        report(FIRST_PASS * tile.area)
    return [total.to(share) for total, share in zip(totals, shares, strict=True)]


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
    whole = Crop.whole(height, width)
    result = image.new_empty(1, 1, height, width)
    with torch.inference_mode():
        for crop, _, light_map in light_map_tiles(
            enhancer, lambda crop: crop.cut(image, whole), height, width, tile
        ):
            crop.cut(result, whole).copy_(light_map)
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
    whole = Crop.whole(height, width)
    peak = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)

    def read(crop: Crop) -> Tensor:
        part = pixels[crop.within(whole)].astype(np.float32)
        x = torch.from_numpy(part).to(device)  # (h, w, 3)
        return x.div_(peak).permute(2, 0, 1)[None]  # channels-last in memory

    if tile is None:
        tile = default_tile(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for crop, x, light_map in light_map_tiles(enhancer, read, height, width, tile, progress):
            y = enhance(x, light_map).mul_(peak).round_()
            result[crop.within(whole)] = y[0].permute(1, 2, 0).cpu().numpy()
    return result
