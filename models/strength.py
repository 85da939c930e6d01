"""Divide photographs by their light maps, more or less strongly than the method does.

The method's strength is 1 (docs/method.md 1). At strength S the light map is taken to the power S,
so that 0 leaves a photograph as it is, and 2 divides it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.enhancer import enhance

LUMA = (0.299, 0.587, 0.114)  # BT.601; not from utils.metrics, which imports scikit-image
STRIP_PIXELS = 2**20  # are converted to floats at a time
AUTO = "auto"
WELL_EXPOSED = (0.45, 0.5)  # mean luma that "auto" aims at
# Of its strengths, the method's, the least and the most, and a step. A backlit photograph may be
# bright in the mean, by its sky, and dark where it matters: so the least is not 0.
PERCENT, LEAST, LARGEST, COARSE = 100, 50, 160, 10
SAMPLE_PIXELS = 2**18  # that "auto" looks at: the mean luma is then exact to about 0.001

Strength = float | Literal["auto"]


def luma(images: Tensor) -> Tensor:
    """The luma (N, 1, H, W) of images (N, 3, H, W), or of grey ones (N, 1, H, W)."""
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
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


def divide(pixels: np.ndarray, light_map: Tensor, strength: float = 1.0) -> np.ndarray:
    """Divide a photograph by its light map to the power `strength`, strip by strip.

    Args:
        pixels: (H, W, 1 or 3), uint8 or uint16.
        light_map: (1, 1, H, W), >= 0, on the device that is to compute.
        strength: 1 as the method has it; 0 gives equal pixels.

    Returns:
        The same shape and type, rounded to nearest; black pixels stay black.
    """
    peak = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)
    with torch.inference_mode():
        for rows in strips(*pixels.shape[:2]):
            x = as_image(pixels[rows], light_map.device)
            y = enhance(x, light_map[:, :, rows].float() ** strength)
            result[rows] = y.mul_(peak).round_()[0].permute(1, 2, 0).cpu().numpy()
    return result


def choose_strength(pixels: np.ndarray, light_map: Tensor) -> float:
    """Choose the strength nearest to the method's 1 that exposes a photograph well.

    That is, the mean luma of the clamped result gets into WELL_EXPOSED. It is measured on a regular
    sample of the pixels, those that alpha hides among them.

    Args:
        pixels, light_map: as of `divide`.

    Returns:
        Hundredths, from 0.5 to 1.6; where none of these exposes it well, the end that comes nearer.
    """
    height, width = pixels.shape[:2]
    step = max(1, round((height * width / SAMPLE_PIXELS) ** 0.5))
    darkest, lightest = WELL_EXPOSED
    with torch.inference_mode():
        x = as_image(pixels[::step, ::step], light_map.device)
        sample = x, light_map[:, :, ::step, ::step].float()
        means = {k: mean_luma(*sample, k) for k in range(LEAST, LARGEST + 1, COARSE)}
        if darkest <= means[PERCENT] <= lightest:
            return 1.0
        for k in sorted(range(LEAST, LARGEST, COARSE), key=lambda k: abs(k + COARSE / 2 - PERCENT)):
            lower, higher = sorted((means[k], means[k + COARSE]))
            if higher < darkest or lower > lightest:
                continue
            fine = {k: mean_luma(*sample, k) for k in range(k, k + COARSE + 1)}
            if well := [k for k, mean in fine.items() if darkest <= mean <= lightest]:
                return min(well, key=lambda k: abs(k - PERCENT)) / PERCENT
    middle = (darkest + lightest) / 2
    return min((LEAST, LARGEST), key=lambda k: abs(means[k] - middle)) / PERCENT


def mean_luma(x: Tensor, light_map: Tensor, hundredths: int) -> float:
    """The mean luma of an image (1, C, H, W) enhanced at a strength, after clamping."""
    return luma(enhance(x, light_map ** (hundredths / PERCENT))).mean().item()
