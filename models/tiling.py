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

from models.enhancer import UNetEnhancer
from models.pooling import Crop, Span
from models.strength import as_image, choose_gamma, divide

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
) -> Iterator[tuple[Crop, Tensor]]:
    """Compute an image's light map, tile by tile, exactly as in one go.

    Args:
        enhancer: the network.
        read: gives any crop of the image.
        height, width: the image's size.
        tile: the tiles' side in pixels; 0 for the whole image in one go.
        progress: is called after each tile of each pass; the sum is height * width.

    Yields:
        A tile and its light map (1, 1, h, w); the tiles cover the image.

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
        light_map = enhancer.decode(near.cut(enhancer.encode(read(far)), far), near, averages)
        if not light_map.isfinite().all():
            raise FloatingPointError("the light map is not finite")
        yield tile, tile.cut(light_map, near)
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
        for crop, light_map in light_map_tiles(
            enhancer, lambda crop: crop.cut(image, whole), height, width, tile
        ):
            crop.cut(result, whole).copy_(light_map)
    return result


def photo_light_map(
    enhancer: UNetEnhancer,
    pixels: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    tile: int | None = None,
    amp: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Compute a photograph's light map; only tiles of it are ever converted to floats.

    Args:
        enhancer: the network, on `device`.
        pixels: (H, W, 1 or 3), uint8 or uint16, grey or RGB.
        device: where to compute.
        tile: the tiles' side in pixels; None for the fastest, 0 for the whole photo in one go.
        amp: compute in bfloat16 where the device's autocast does; faster on a GPU, less exact.
        progress: is called after each tile of each pass; the sum is H * W.

    Returns:
        (1, 1, H, W) in fp32, >= 0, on the device.

    Raises:
        FloatingPointError: it is not finite; the weights are too large.
    """
    device = torch.device(device)
    height, width = pixels.shape[:2]
    colours = np.broadcast_to(pixels, (height, width, 3))
    whole = Crop.whole(height, width)

    def read(crop: Crop) -> Tensor:
        return as_image(colours[crop.within(whole)], device)

    if tile is None:
        tile = default_tile(device)
    result = torch.empty(1, 1, height, width, device=device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for crop, light_map in light_map_tiles(enhancer, read, height, width, tile, progress):
            crop.cut(result, whole).copy_(light_map)
    return result


def enhance_photo(
    enhancer: UNetEnhancer,
    pixels: np.ndarray,
    *,
    strength: float = 1.0,
    auto_exposure: bool = False,
    **how: object,
) -> np.ndarray:
    """Enhance a photograph.

    Args:
        enhancer, pixels: as of `photo_light_map`.
        strength: as of `divide`.
        auto_exposure: lighten a result that is dark in the mean, as `choose_gamma` says.
        how: what else `photo_light_map` takes.

    Returns:
        (H, W, 1 or 3) of the same type, rounded to nearest; black pixels stay black.

    Raises:
        FloatingPointError: as `photo_light_map`.
    """
    light_map = photo_light_map(enhancer, pixels, **how)
    gamma = choose_gamma(pixels, light_map, strength) if auto_exposure else 1.0
    return divide(pixels, light_map, strength, gamma)
