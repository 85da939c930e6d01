"""An enhancer ready for use: weights loaded, inference's padding, photographs in and out.

The only file in models/ that reads others, through utils/checkpoint.py.
"""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from models.enhancer import UNetEnhancer
from models.tiling import enhance_photo
from utils.checkpoint import find_weights, restore
from utils.options import STRONGEST, choose_device

AnyPhoto = TypeVar("AnyPhoto", Image.Image, np.ndarray)
# Pillow's modes:
GREY = ("1", "L", "LA", "La")
DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # there are no colours of 16 bits
CONVERTED = ("CMYK", "LAB")  # to RGB, which their colour profiles do not describe
DEEPEST = 65535


class PhotoEnhancer(UNetEnhancer):
    """An enhancer for inference, with reflect padding; called, it gives light maps as any does."""

    def __init__(self) -> None:
        super().__init__(padding_mode="reflect")
        self.eval()

    def enhance(
        self, photo: AnyPhoto, strength: float = 1.0, auto_exposure: bool = False
    ) -> AnyPhoto:
        """Enhance a photograph of any size exactly, tile by tile.

        Args:
            photo: a PIL image, or an array (H, W, 3) of type uint8 or uint16.
            strength: 1 as the method has it, 0 for equal pixels, at most 3.
            auto_exposure: lighten a result whose mean luma is below 0.5 by a tone curve until it
                is there, or as far as the power 0.6 goes (`models.strength.choose_gamma`).

        Returns:
            A new one of the same size. An array keeps its type; an image its mode, its alpha and
            its info (colour profile, EXIF): grey stays grey, with 16 bits too. But a bilevel image
            becomes grey; a palette, and colours other than RGB, become RGB, with alpha if there is
            any. Orientation is not applied: `PIL.ImageOps.exif_transpose` does that before.

        Raises:
            TypeError: it is neither.
            ValueError: it has no pixels, or they are of another shape or type; or there is no such
                strength.
            FloatingPointError: a light map is not finite; the weights are too large.
        """
        if not (isinstance(strength, Real) and 0 <= strength <= STRONGEST):
            raise ValueError(f"expected a strength from 0 to {STRONGEST}, not {strength!r}")
        how = dict(strength=strength, auto_exposure=auto_exposure)
        if isinstance(photo, Image.Image):
            return self._enhance_image(photo, **how)
        if not isinstance(photo, np.ndarray):
            raise TypeError(f"expected a PIL image or a numpy array, not {type(photo).__name__}")
        if photo.shape[2:] != (3,) or photo.dtype.kind != "u" or photo.dtype.itemsize > 2:
            found = f"{photo.shape} of {photo.dtype}"
            raise ValueError(f"expected an array (H, W, 3) of uint8 or uint16, not {found}")
        return self._enhance_pixels(photo, **how)

    def _enhance_pixels(self, pixels: np.ndarray, **how: object) -> np.ndarray:
        """Enhance colours (H, W, 3) or grey (H, W)."""
        if not pixels.size:
            raise ValueError("the photograph has no pixels")
        how["device"] = self.cond1.weight.device
        if pixels.ndim == 3:
            return enhance_photo(self, pixels, **how)
        return enhance_photo(self, pixels[..., None], **how)[..., 0]

    def _enhance_image(self, photo: Image.Image, **how: object) -> Image.Image:
        mode, info = photo.mode, dict(photo.info)
        if mode == "F":
            raise ValueError("an image of mode F has no whole numbers; convert it to L or RGB")
        if mode in DEEP_GREY:
            result = self._enhance_deep_grey(np.asarray(photo), **how)
        else:
            alpha = None
            if photo.has_transparency_data:
                photo = photo.convert("LA" if mode in GREY else "RGBA")
                alpha = photo.getchannel("A")
            plain = photo.convert("L" if mode in GREY else "RGB")
            result = Image.fromarray(self._enhance_pixels(np.asarray(plain), **how))
            if alpha:
                result.putalpha(alpha)
        info.pop("transparency", None)  # a colour before, and alpha now
        if mode in CONVERTED:
            info.pop("icc_profile", None)
        result.info = info
        return result

    def _enhance_deep_grey(self, pixels: np.ndarray, **how: object) -> Image.Image:
        """Enhance grey (H, W) of 16 bits, which Pillow may keep in 32."""
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= DEEPEST:
            found = f"{pixels.min()} to {pixels.max()}"
            raise ValueError(f"expected grey values from 0 to {DEEPEST}, not {found}")
        result = self._enhance_pixels(pixels.astype(np.uint16), **how)
        return Image.fromarray(result.astype(pixels.dtype))


def load_enhancer(
    name_or_path: str | Path | None = None, device: torch.device | str = "auto"
) -> PhotoEnhancer:
    """Load an enhancer, ready for inference.

    Args:
        name_or_path: weights as `utils.checkpoint.find_weights` takes them: a file, or the name of
            one in `pretrained_models/`; None for the default there.
        device: auto, cpu, cuda, cuda:1, mps, or one of torch's.

    Returns:
        The network on the device: `network.enhance(photo)` gives photographs, and
        `network(images)` the light maps of images (N, 3, H, W) in [0, 1].

    Raises:
        UserError: there are no such weights or no such device, or they are not an enhancer's.
    """
    device = choose_device(str(device))
    network = PhotoEnhancer()
    restore(network, find_weights(name_or_path), "enhancer weights")
    return network.to(device, memory_format=torch.channels_last)
