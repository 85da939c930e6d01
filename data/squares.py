"""Photographs resized to squares, as training and the encoders take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms import functional as TF

EXTREME = 16  # longer to shorter side, beyond which resizing in full would take gigabytes


@dataclass(frozen=True)
class CentreCrop:
    """The size of squares that CLIP's own preprocessing cuts out, side in pixels."""

    side: int

    def __str__(self) -> str:
        return f"crop{self.side}"


def resized(photo: np.ndarray, size: int | CentreCrop) -> np.ndarray:
    """Resize a photograph to a square.

    Args:
        photo: (H, W, 3) uint8.
        size: side in pixels, by Lanczos without keeping the aspect ratio (docs/method.md 6); or
            a `CentreCrop`: the shorter side by bicubic, then the centre (docs/method.md 2).

    Returns:
        (3, side, side) uint8.
    """
    height, width = photo.shape[:2]
    if height > EXTREME * width:  # Pillow resizes the width first, for all rows
        turned = resized(photo.transpose(1, 0, 2), size)
        return np.ascontiguousarray(turned.transpose(0, 2, 1))
    if isinstance(size, CentreCrop):
        square = Image.fromarray(_without_ends(photo))
        square = TF.resize(square, size.side, TF.InterpolationMode.BICUBIC)
        square = TF.center_crop(square, size.side)
    else:
        square = Image.fromarray(photo).resize((size, size), Image.Resampling.LANCZOS)
    return np.array(np.asarray(square).transpose(2, 0, 1), order="C")  # writable, for torch


def _without_ends(photo: np.ndarray) -> np.ndarray:
    """Cut an extremely wide photograph to the nine squares at its centre; any other stays whole.

    The crop shows the middle one, and no pixel beyond its neighbours can change it.
    """
    height, width = photo.shape[:2]
    if width <= EXTREME * height:
        return photo
    end = (width - 9 * height) // 2  # cut on either side, so that the centre stays
    return photo[:, end : width - end]
