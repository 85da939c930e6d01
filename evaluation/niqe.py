"""NIQE: how far an image's statistics lie from those of pristine photographs, without reference.

Mittal, Soundararajan and Bovik, "Making a 'Completely Blind' Image Quality Analyzer", IEEE Signal
Processing Letters 20(3), 2013; the steps and constants are those that BasicSR computes
(docs/method.md 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.special import gamma

BLOCK = 96  # pixels a side
FEATURES = 36  # of a block: 18 at each of two scales
LUMA, LUMA_OFFSET = np.array([65.481, 128.553, 24.966]) / 255, 16  # of BT.601
SIGMA, RADIUS = 7 / 6, 3  # of the window of 7x7
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows and columns that a block is rolled by
# The bicubic kernel (a = -1/2), stretched to twice its width, at the distances of the 8 nearest:
HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
# Shapes of generalised Gaussians that are tried, and the ratio of moments that tells each:
SHAPES = np.linspace(0.2, 10, 9801)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))  # rising


class Unmeasurable(Exception):
    """An image that has no NIQE; the text completes a sentence that begins with its name."""


@dataclass
class Pristine:
    """The normal distribution of the features of pristine photographs.

    Attributes:
        mean: (36,).
        covariance: (36, 36).
    """

    mean: np.ndarray
    covariance: np.ndarray


def niqe(pixels: np.ndarray, pristine: Pristine) -> float:
    """Compute NIQE of an image, (H, W, 3) uint8; lower is better.

    Raises:
        Unmeasurable: there are not two blocks, or not two with texture.
    """
    height, width = (side // BLOCK * BLOCK for side in pixels.shape[:2])
    if height * width < 2 * BLOCK**2:
        raise Unmeasurable(f"is smaller than the two blocks of {BLOCK}x{BLOCK} that NIQE needs")
    luma = np.rint(pixels[:height, :width] @ LUMA + LUMA_OFFSET).astype(np.float32)
    halved = halve(halve(luma, 0), 1)
    scales = (block_features(luma, BLOCK), block_features(halved, BLOCK // 2))
    features = np.concatenate(scales, axis=1)  # (N, 36)
    textured = features[~np.isnan(features).any(axis=1)]
    if len(textured) < 2:
        raise Unmeasurable(f"has no two blocks of {BLOCK}x{BLOCK} with texture, as NIQE needs")
    shift = np.nanmean(features, axis=0) - pristine.mean
    covariance = (pristine.covariance + np.cov(textured, rowvar=False)) / 2
    return float(np.sqrt(shift @ np.linalg.pinv(covariance) @ shift))


def halve(image: np.ndarray, axis: int) -> np.ndarray:
    """Halve an image along an axis of even length, as MATLAB's antialiased bicubic imresize."""
    smooth = correlate1d(image, HALVING, axis, mode="reflect")  # of pixel k: k - 4 to k + 3
    return smooth[1::2] if axis == 0 else smooth[:, 1::2]


def block_features(image: np.ndarray, side: int) -> np.ndarray:
    """Compute the features of whole blocks of `side` pixels; NaN where a block is flat.

    Args:
        image: (H, W) float32 from 0 to 255. In float32, as BasicSR has it, flat areas stay flat.
        side: divides H and W.

    Returns:
        (N, 18): shape and mean scale of the normalised luma; shape, mean and both scales of its
        products with four neighbours.
    """
    mean, of_squares = (
        gaussian_filter(x, SIGMA, mode="nearest", radius=RADIUS) for x in (image, np.square(image))
    )
    normalised = (image - mean) / (np.sqrt(np.abs(of_squares - np.square(mean))) + 1)
    rows, columns = (length // side for length in image.shape)
    blocks = normalised.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    shape, left, right = fit_aggd(blocks)
    features = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = fit_aggd(blocks * np.roll(blocks, shift, axis=(1, 2)))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return np.stack(features, axis=1)


def fit_aggd(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit an asymmetric generalised Gaussian to the values of each block by its moments.

    Args:
        blocks: (N, any, any).

    Returns:
        Shapes, and scales to the left and right of 0, (N,) each. A block without values on one side
        has no scales (NaN), and the smallest shape.
    """
    x = blocks.reshape(len(blocks), -1).astype(np.float64)
    squares = np.square(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (
            np.sqrt((squares * side).sum(axis=1) / side.sum(axis=1)) for side in (x < 0, x > 0)
        )
        skew = left / right
        ratio = np.abs(x).mean(axis=1) ** 2 / squares.mean(axis=1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    above = np.searchsorted(RATIOS, ratio).clip(1, len(RATIOS) - 1)
    nearest = above - (ratio - RATIOS[above - 1] <= RATIOS[above] - ratio)
    shape = np.where(np.isnan(ratio), SHAPES[0], SHAPES[nearest])
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale
