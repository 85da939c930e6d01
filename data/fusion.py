"""Exposure fusion: one well-exposed picture from the frames of a bracket.

Mertens, Kautz and Van Reeth, "Exposure fusion", 2007: every pixel of every frame is weighed by its
contrast, its saturation and how well it is exposed; the frames are blended by these weights, level
by level of a Laplacian pyramid, so that no seams show.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.ndimage import convolve1d, laplace

from utils.metrics import GREY

WELL_EXPOSED = 0.5
SPREAD = 0.2  # standard deviation around it
LEAST_WEIGHT = 1e-12  # where no frame has any
BINOMIAL = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16


def fuse(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Fuse the frames of a bracket.

    Args:
        frames: (H, W, 3) uint8 each, of one size, aligned.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: there is no frame, or sizes differ.
    """
    if len({frame.shape for frame in frames}) != 1:
        raise ValueError("the frames of a bracket must have one size")
    images = [np.float32(frame) / 255 for frame in frames]
    weights = [weigh(image) + LEAST_WEIGHT for image in images]
    total = np.sum(weights, axis=0)
    levels = max(0, int(np.log2(min(total.shape[:2]))))
    blended = [0.0] * (levels + 1)
    for image, weight in zip(images, weights, strict=True):
        shares = gaussian_pyramid(weight / total, levels)
        for level, detail in enumerate(laplacian_pyramid(image, levels)):
            blended[level] = blended[level] + shares[level] * detail
    return np.rint(255 * collapse(blended).clip(0, 1)).astype(np.uint8)


def weigh(image: np.ndarray) -> np.ndarray:
    """Rate every pixel of an image (H, W, 3) in [0, 1]: (H, W, 1), >= 0."""
    contrast = np.abs(laplace(image @ np.float32(GREY), mode="mirror"))[..., None]
    saturation = image.std(axis=2, keepdims=True)
    exposure = np.exp(-((image - WELL_EXPOSED) ** 2) / (2 * SPREAD**2)).prod(axis=2, keepdims=True)
    return contrast * saturation * exposure


def blur(image: np.ndarray) -> np.ndarray:
    """Smooth (H, W, C) with the binomial filter of five taps."""
    return convolve1d(convolve1d(image, BINOMIAL, 0, mode="mirror"), BINOMIAL, 1, mode="mirror")


def halve(image: np.ndarray) -> np.ndarray:
    """Smooth (H, W, C) and keep every second pixel of every second row."""
    return blur(image)[::2, ::2]


def double(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Enlarge what `halve` made of an image of `shape`, smoothly."""
    spread = np.zeros(shape, dtype=np.float32)
    known = np.zeros((*shape[:2], 1), dtype=np.float32)
    spread[::2, ::2], known[::2, ::2] = image, 1
    return blur(spread) / blur(known)


def gaussian_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """Halve (H, W, C) again and again: `levels` + 1 images."""
    pyramid = [image]
    for _ in range(levels):
        pyramid.append(halve(pyramid[-1]))
    return pyramid


def laplacian_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """Take what each level of the Gaussian pyramid adds to the next, and the last level."""
    pyramid = gaussian_pyramid(image, levels)
    details = [fine - double(coarse, fine.shape) for fine, coarse in pairwise(pyramid)]
    return [*details, pyramid[-1]]


def collapse(pyramid: Sequence[np.ndarray]) -> np.ndarray:
    """Add the levels of a Laplacian pyramid up: the image (H, W, C)."""
    image = pyramid[-1]
    for detail in reversed(pyramid[:-1]):
        image = detail + double(image, detail.shape)
    return image
