"""Colours of other kinds, and of other profiles, as RGB."""

from __future__ import annotations

from functools import cache

import imagecodecs
import numpy as np
from PIL import ImageCms

STRIP = 256  # rows converted at a time, where numpy needs more room than the pixels do


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Round uint16 pixels to uint8; return uint8 pixels as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def stretch(samples: np.ndarray, bits: int) -> np.ndarray:
    """Scale samples of so many bits to the full range of uint8, or of uint16 from 9 bits on."""
    kind, wide = (np.uint8, np.uint16) if bits <= 8 else (np.uint16, np.uint32)
    largest, full = 2**bits - 1, np.iinfo(kind).max
    if largest == full:
        return np.ascontiguousarray(samples).view(kind)  # of Lab perhaps signed
    return ((samples.astype(wide) * full + largest // 2) // largest).astype(kind)


@cache
def srgb_profile() -> bytes:
    """Return the ICC profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def to_srgb(samples: np.ndarray, icc_profile: bytes, kind: str) -> np.ndarray | None:
    """Convert colours to sRGB through their profile, in the bit depth they have.

    Args:
        samples: (H, W, C) uint8 or uint16 without alpha.
        icc_profile: of the samples.
        kind: "gray", "rgb", "cmyk" or "labv2".

    Returns:
        (H, W, 3) of the same type, grey (H, W, 1); None if the profile is damaged or of another
        kind of colours.
    """
    try:
        converted = imagecodecs.cms_transform(
            np.ascontiguousarray(samples),
            icc_profile,
            srgb_profile(),
            colorspace=kind,
            outcolorspace="rgb",
            intent=imagecodecs.CMS.INTENT.PERCEPTUAL,
        )
    except (imagecodecs.CmsError, ValueError):
        return None
    converted = converted.reshape(*samples.shape[:2], 3)
    return converted[..., 1:2].copy() if kind == "gray" else converted


def cmyk_to_rgb(
    samples: np.ndarray, icc_profile: bytes | None
) -> tuple[np.ndarray, bytes | None, list[str]]:
    """Convert CMYK to sRGB through its profile; without a profile, to plain RGB.

    Args:
        samples: (H, W, 4) uint8 or uint16; 0 is no ink.
        icc_profile: of the inks, or None.

    Returns:
        (H, W, 3) of the same type, its colour profile, and notes.
    """
    notes = []
    if icc_profile:
        converted = to_srgb(samples, icc_profile, "cmyk")
        if converted is not None:
            return converted, srgb_profile(), []
        notes.append("its CMYK profile is damaged: the colours are converted without it")
    largest = np.iinfo(samples.dtype).max
    rgb = np.empty((*samples.shape[:2], 3), samples.dtype)
    for top in range(0, len(samples), STRIP):
        light = largest - samples[top : top + STRIP].astype(np.uint32)
        shares = light[..., :3] * light[..., 3:]
        rgb[top : top + STRIP] = (shares + largest // 2) // largest
    return rgb, None, notes


def lab_to_srgb(samples: np.ndarray) -> np.ndarray:
    """Convert Lab, (H, W, 3) uint8 or uint16 in the encoding of ICC's version 2, to sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return to_srgb(samples, lab, "labv2")


def divide_by_alpha(samples: np.ndarray) -> None:
    """Divide the colours of (H, W, C) by their alpha, the last channel, in place."""
    largest = np.iinfo(samples.dtype).max
    for top in range(0, len(samples), STRIP):
        strip = samples[top : top + STRIP]
        share = np.maximum(strip[..., -1:], 1).astype(np.float32)
        plain = strip[..., :-1] * (largest / share)
        strip[..., :-1] = np.minimum(np.rint(plain), largest)
