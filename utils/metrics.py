"""PSNR and SSIM of image pairs, under the standard, the released and the gt_mean protocol.

The released protocol (docs/method.md 8) is what the RAVE authors' own script computes; it differs
enough (by 0.1 to 0.4 dB on LOL) that figures of one must not stand beside figures of the other. So
does gt_mean, which gives every enhanced image the brightness of its ground truth first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PROTOCOLS = ("standard", "released")
GT_MEAN = "gt_mean"  # what Retinexformer's --GT_mean and HVI-CIDNet's table compute
GREY = np.array([0.299, 0.587, 0.114])  # BT.601

# OpenCV's grey in 15-bit fixed point: 0.114, 0.587 and 0.299 of 2^15. The released script hands RGB
# to the conversion that expects BGR, so red gets blue's weight.
GREY_OF_SWAPPED = np.array([3735, 19235, 9798], dtype=np.int32)
GREY_BITS = 15


def released_grey(pixels: np.ndarray) -> np.ndarray:
    """Turn (H, W, 3) uint8 RGB into the (H, W) uint8 grey of the released script.

    Rounds half up, as OpenCV does (docs/method.md 8).
    """
    weighted = pixels.astype(np.int32) @ GREY_OF_SWAPPED
    return (weighted + (1 << (GREY_BITS - 1)) >> GREY_BITS).astype(np.uint8)


def scaled_to_mean(enhanced: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """Scale an image to another one's mean grey, which knows the answer (docs/method.md 8).

    Args:
        enhanced: (H, W, 3) uint8.
        gt: likewise.

    Returns:
        (H, W, 3) float64 in [0, 255], not rounded; a black image stays black.
    """
    own, wanted = (image.mean(axis=(0, 1)) @ GREY for image in (enhanced, gt))
    return np.clip(enhanced * (wanted / own if own else 1.0), 0, 255)


def fidelity(
    gt: np.ndarray, enhanced: np.ndarray, protocol: str, wanted: Sequence[str] = ("psnr", "ssim")
) -> dict[str, float]:
    """Compute PSNR and SSIM of an image pair with scikit-image's defaults (docs/method.md 8).

    Args:
        gt: ground truth, (H, W, 3) uint8; SSIM needs at least 7x7 pixels.
        enhanced: likewise.
        protocol: of `PROTOCOLS`, or `GT_MEAN`.
        wanted: which of "psnr" and "ssim" to compute; other names are ignored.

    Returns:
        "psnr" in dB, infinite for equal images; "ssim", at most 1. The released protocol takes the
        enhanced image's own range as SSIM's peak; where that is 0 (an image of one grey), its
        formula divides 0 by 0, and the result is 0.
    """
    # It takes a second to import, which trainings without validation need not wait for:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    channel_axis, data_range = 2, 255
    if protocol == "released":
        gt, enhanced = released_grey(gt), released_grey(enhanced)
        channel_axis, data_range = None, int(enhanced.max()) - int(enhanced.min())
    elif protocol == GT_MEAN:
        gt, enhanced = gt.astype(np.float64), scaled_to_mean(enhanced, gt)
    values = {}
    if "psnr" in wanted:
        equal = np.array_equal(gt, enhanced)  # scikit-image would warn of a division by 0
        psnr = math.inf if equal else peak_signal_noise_ratio(gt, enhanced, data_range=255)
        values["psnr"] = float(psnr)
    if "ssim" in wanted:
        ssim = 0.0
        if data_range > 0:
            ssim = structural_similarity(
                gt, enhanced, channel_axis=channel_axis, data_range=data_range
            )
        values["ssim"] = float(ssim)
    return values
