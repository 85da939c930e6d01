"""A fast approximation: the light map of a reduced photograph, upsampled along its edges.

Zero-DCE++ gets its speed from a reduced input; here the light map alone is of the reduced size,
and a guided filter (He and Sun, "Fast guided filter", 2015) brings it to full size, so that it
changes where the photograph's luma does and leaves no halos.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.enhancer import UNetEnhancer
from models.strength import as_image, luma, strips
from models.tiling import light_map_tiled

RADIUS = 4  # pixels of the reduced photograph, of the guided filter's windows
EPSILON = 1e-4  # luma variance in a window that counts as an edge


def fast_light_map(
    enhancer: UNetEnhancer,
    pixels: np.ndarray,
    scale: float,
    *,
    device: torch.device | str = "cpu",
    tile: int | None = None,
    amp: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Approximate a photograph's light map.

    Args:
        enhancer: the network, on `device`.
        pixels: (H, W, 1 or 3), uint8 or uint16, grey or RGB.
        scale: the reduced copy's share of each side, in (0, 1].
        device: where to compute.
        tile: as of `photo_light_map`, for the reduced copy.
        amp: compute the network in bf16 autocast.
        progress: called with H * W at the end.

    Returns:
        (1, 1, H, W) in fp32, >= 0, on the device.
    """
    device = torch.device(device)
    height, width = pixels.shape[:2]
    colours = np.broadcast_to(pixels, (height, width, 3))
    with torch.inference_mode():
        small = reduced(colours, scale).to(device)  # (1, 3, h, w)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            light_map = light_map_tiled(enhancer, small, tile)
        slope, offset = guided_coefficients(light_map.float(), luma(small))
        # Rows are interpolated strip by strip, columns at once:
        coefficients = F.interpolate(
            torch.cat([slope, offset], dim=1), (slope.shape[2], width), mode="bilinear"
        )
        result = torch.empty(1, 1, height, width, device=device)
        for rows in strips(height, width):
            slope, offset = interpolate_rows(coefficients, rows, height).chunk(2, dim=1)
            guide = luma(as_image(colours[rows], device))
            result[:, :, rows] = (slope * guide + offset).clamp_(min=0)
    if progress:
        progress(height * width)
    return result


def reduced(pixels: np.ndarray, scale: float) -> Tensor:
    """Reduce (H, W, 3) uint8 or uint16 to a share of its sides: (1, 3, h, w) in [0, 1]."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32)).resize(
                size, Image.Resampling.BILINEAR
            )
        )
        for channel in np.moveaxis(pixels, 2, 0)
    ]
    return torch.from_numpy(np.stack(channels))[None] / np.iinfo(pixels.dtype).max


def guided_coefficients(light_map: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the light map as a linear function of the guide in every window.

    Args:
        light_map: (1, 1, h, w).
        guide: likewise.

    Returns:
        Slope and offset (1, 1, h, w): `light_map ~ slope * guide + offset`.
    """
    mean_guide, mean_map = box_mean(guide), box_mean(light_map)
    variance = box_mean(guide * guide) - mean_guide**2
    covariance = box_mean(guide * light_map) - mean_guide * mean_map
    slope = covariance / (variance.clamp(min=0) + EPSILON)
    offset = mean_map - slope * mean_guide
    return box_mean(slope), box_mean(offset)


def box_mean(images: Tensor) -> Tensor:
    """The mean over a square window around each pixel, of what lies inside the image."""
    size = 2 * RADIUS + 1
    return F.avg_pool2d(images, size, stride=1, padding=RADIUS, count_include_pad=False)


def interpolate_rows(images: Tensor, rows: slice, height: int) -> Tensor:
    """Rows `rows` of images (N, C, h, W) upsampled bilinearly to `height` rows."""
    count = images.shape[2]
    position = (torch.arange(rows.start, rows.stop, device=images.device) + 0.5) * count / height
    position = (position - 0.5).clamp(0, count - 1)
    above = position.floor().long()
    below = (above + 1).clamp(max=count - 1)
    share = (position - above)[:, None]
    return images[:, :, above] * (1 - share) + images[:, :, below] * share
