"""PSNR, SSIM and LPIPS of image pairs, under the standard and the released protocol.

The released protocol (method.md, 8) is what the RAVE authors' own script computes; it differs
enough (by 0.1 to 0.4 dB on LOL) that figures of one must not stand beside figures of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchvision.transforms.functional import InterpolationMode, resize

PROTOCOLS = ("standard", "released")
METRICS = ("psnr", "ssim", "lpips", "fid")
PER_IMAGE = ("psnr", "ssim", "lpips")
LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID"}
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "fid": False}
DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "fid": 2}
SMALLEST = {"psnr": 1, "ssim": 7, "lpips": 32, "fid": 1}  # pixels: SSIM's window, LPIPS' poolings

# OpenCV's grey in 15-bit fixed point, rounded half up: 0.299, 0.587, 0.114 of 2^15. The released
# script hands RGB to the conversion that expects BGR, so that red gets blue's share.
GREY_OF_SWAPPED = (3735, 19235, 9798)
GREY_BITS = 15

LPIPS_SHORTER_SIDE = 1024  # of the released protocol
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5)  # bring [0, 1] to [-1, 1]


def released_grey(pixels: np.ndarray) -> np.ndarray:
    """Turn (H, W, 3) uint8 RGB into the (H, W) uint8 grey of the released script (method.md, 8)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    of_red, of_green, of_blue = GREY_OF_SWAPPED
    grey = of_red * red + of_green * green + of_blue * blue + (1 << (GREY_BITS - 1))
    return (grey >> GREY_BITS).astype(np.uint8)


def fidelity(
    gt: np.ndarray, enhanced: np.ndarray, protocol: str, wanted: Sequence[str] = ("psnr", "ssim")
) -> dict[str, float]:
    """PSNR and SSIM of (H, W, 3) uint8 images, for SSIM of at least 7x7 pixels.

    Returns:
        psnr in dB, infinite for equal images; ssim, at most 1. Both by scikit-image, with its
        defaults. The released protocol gives SSIM the enhanced image's own range for the peak;
        where that is 0 (an image of one grey) the formula says 0/0 and the result here is 0.
    """
    axis, data_range = 2, 255
    if protocol == "released":
        gt, enhanced = released_grey(gt), released_grey(enhanced)
        axis, data_range = None, int(enhanced.max()) - int(enhanced.min())
    figures = {}
    if "psnr" in wanted:
        same = np.array_equal(gt, enhanced)
        psnr = math.inf if same else peak_signal_noise_ratio(gt, enhanced, data_range=255)
        figures["psnr"] = float(psnr)
    if "ssim" in wanted:
        figures["ssim"] = 0.0
        if data_range > 0:
            ssim = structural_similarity(gt, enhanced, channel_axis=axis, data_range=data_range)
            figures["ssim"] = float(ssim)
    return figures


def lpips_pixels(pixels: np.ndarray, protocol: str) -> np.ndarray:
    """Bring (H, W, 3) uint8 to the size at which LPIPS sees it: native, or shorter side 1024."""
    if protocol == "standard":
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(resize(image, LPIPS_SHORTER_SIDE, InterpolationMode.BILINEAR))


def lpips_distances(
    network: nn.Module, gt: np.ndarray, enhanced: np.ndarray, protocol: str
) -> list[float]:
    """LPIPS of N pairs of equal size.

    `lpips.LPIPS` computes the same; here the two images go through the backbone together, and
    the distances of its features are taken with a fourth of the passes over memory.

    Args:
        network: `lpips.LPIPS` in evaluation mode.
        gt: (N, H, W, 3) uint8, of the size that `lpips_pixels` gives.
        enhanced: the same.
        protocol: standard ([-1, 1], as LPIPS was fitted) or released (ImageNet mean and std).

    Returns:
        N distances; 0 for equal images.
    """
    device = next(network.parameters()).device
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if protocol == "released" else (HALVES, HALVES)
    with torch.inference_mode():
        pixels = torch.from_numpy(np.concatenate([gt, enhanced])).to(device).float().div_(255)
        pixels.sub_(pixels.new_tensor(mean)).div_(pixels.new_tensor(std))
        images = pixels.permute(0, 3, 1, 2)  # (2 N, 3, H, W) in channels-last order
        distances = torch.zeros(len(gt), device=device)
        layers = network.net(network.scaling_layer(images))
        for features, head in zip(layers, network.lins, strict=True):
            norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
            first, second = (features / (norms + 1e-10)).chunk(2)
            difference = first.sub_(second).square_().mean((2, 3))  # (N, C)
            distances += difference @ head.model[-1].weight.flatten()
        return distances.tolist()
