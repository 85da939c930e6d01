"""Divide photographs by their light maps, more or less strongly than the method does; expose them.

The method's strength is 1 (docs/method.md 1). At strength S the light map is taken to the power S,
so that 0 leaves a photograph as it is, and 2 divides it twice. Auto exposure then lightens what is
still dark in the mean by a tone curve, a power below 1: it clips nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from models.enhancer import enhance
from utils.metrics import GREY

STRIP_PIXELS = 2**20  # are converted to floats at a time
WELL_EXPOSED = 0.5  # the mean luma that auto exposure brings darker results to
LEAST_GAMMA = 60  # hundredths; less would lift the noise of what is all but black
SAMPLE_PIXELS = 2**18  # that auto exposure looks at: the mean luma is then exact to about 0.001


def luma(images: Tensor) -> Tensor:
    """The luma (N, 1, H, W) of images (N, 3, H, W), or of grey ones (N, 1, H, W)."""
    weights = torch.tensor(GREY, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def as_image(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Convert (H, W, C) uint8 or uint16 to (1, C, H, W) in [0, 1], channels-last in memory."""
    x = torch.from_numpy(pixels.astype(np.float32)).to(device)
    return x.div_(np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None]


def strips(height: int, width: int) -> Iterator[slice]:
    """Split an image into strips of rows of about STRIP_PIXELS."""
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def divide(
    pixels: np.ndarray, light_map: Tensor, strength: float = 1.0, gamma: float = 1.0
) -> np.ndarray:
    """Divide a photograph by its light map to the power `strength`, strip by strip.

    What comes out is clamped to [0, 1] and taken to the power `gamma`.

    Args:
        pixels: (H, W, 1 or 3), uint8 or uint16.
        light_map: (1, 1, H, W), >= 0, on the device that is to compute.
        strength: 1 as the method has it; 0 gives equal pixels.
        gamma: 1 as the method has it; less lightens.

    Returns:
        The same shape and type, rounded to nearest; black pixels stay black.
    """
    peak = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)
    with torch.inference_mode():
        for rows in strips(*pixels.shape[:2]):
            x = as_image(pixels[rows], light_map.device)
            y = enhance(x, light_map[:, :, rows].float() ** strength)
            if gamma != 1:
                y = y.pow_(gamma)
            result[rows] = y.mul_(peak).round_()[0].permute(1, 2, 0).cpu().numpy()
    return result


def choose_gamma(pixels: np.ndarray, light_map: Tensor, strength: float = 1.0) -> float:
    """Choose the power to which a result is to be taken, so that it is not dark in the mean.

    The mean luma is measured on a regular sample of the pixels, those that alpha hides among them.

    Args:
        pixels, light_map, strength: as of `divide`.

    Returns:
        1 where the result is black, or its mean luma WELL_EXPOSED or more; else the largest of
        0.99, 0.98 and so on down to 0.6 that brings it there, or 0.6 where none does.
    """
    height, width = pixels.shape[:2]
    step = max(1, round((height * width / SAMPLE_PIXELS) ** 0.5))
    with torch.inference_mode():
        x = as_image(pixels[::step, ::step], light_map.device)
        result = enhance(x, light_map[:, :, ::step, ::step].float() ** strength)
        if not result.any():
            return 1.0

        def lack(hundredths: int) -> float:
            return WELL_EXPOSED - luma(result ** (hundredths / 100)).mean().item()

        enough = bisect_right(range(LEAST_GAMMA, 101), 0, key=lack)  # the lack grows with the power
    return max(LEAST_GAMMA, LEAST_GAMMA + enough - 1) / 100
