"""Random augmentation: one draw for all images of a tuple (docs/method.md 6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import horizontal_flip, vertical_flip

# All from docs/method.md 6.
ENHANCER_ZOOM = (0.7, 1.3)
GUIDANCE_ZOOM = (0.5, 1.5)
FLIP_PROBABILITY = 0.5  # each of horizontal flip, vertical flip and transposition
WARP_PROBABILITY = 0.3  # each of zoom and rotation
MAX_ANGLE = 90.0  # degrees


@dataclass(frozen=True)
class Draw:
    """An augmentation, its steps in order; `zoom` is (vertical, horizontal), > 1 enlarges."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    transpose: bool = False
    zoom: tuple[float, float] | None = None
    angle: float | None = None  # degrees, counter-clockwise


def generator_for(*key: object) -> torch.Generator:
    """Make a CPU generator seeded by a hash of `key`, such as ("draw", seed, epoch, index)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def random_draw(generator: torch.Generator, zoom_range: tuple[float, float]) -> Draw:
    """Draw an augmentation (docs/method.md 6).

    Args:
        generator: always advances by eight numbers.
        zoom_range: (least, greatest) zoom factor, drawn independently for each axis.
    """
    u = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    least, greatest = zoom_range
    zoom = tuple(least + (greatest - least) * share for share in u[4:6])
    return Draw(
        flip_horizontal=u[0] < FLIP_PROBABILITY,
        flip_vertical=u[1] < FLIP_PROBABILITY,
        transpose=u[2] < FLIP_PROBABILITY,
        zoom=zoom if u[3] < WARP_PROBABILITY else None,
        angle=MAX_ANGLE * (2 * u[7] - 1) if u[6] < WARP_PROBABILITY else None,
    )


def apply_draw(draw: Draw, images: Tensor) -> Tensor:
    """Apply one augmentation to images of one size.

    Args:
        draw: the augmentation.
        images: (..., H, W) floating point.

    Returns:
        (..., H, W), or (..., W, H) where the draw transposes; contiguous.
    """
    if draw.flip_horizontal:
        images = horizontal_flip(images)
    if draw.flip_vertical:
        images = vertical_flip(images)
    if draw.transpose:
        images = images.transpose(-1, -2)
    if draw.zoom is not None:
        vertical, horizontal = draw.zoom
        images = warp(images, torch.tensor([[1 / vertical, 0.0], [0.0, 1 / horizontal]]))
    if draw.angle is not None:
        angle = torch.deg2rad(torch.tensor(draw.angle, dtype=torch.float64))
        sine, cosine = angle.sin(), angle.cos()
        images = warp(images, torch.stack([cosine, sine, -sine, cosine]).view(2, 2))
    return images.contiguous()


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply a linear map about the centre, bilinear, reflected at the border (docs/method.md 6).

    The reflection repeats the edge pixel (a b c | c b a); torchvision's affine transforms can only
    fill with a constant there.

    Args:
        images: (..., H, W) floating point.
        matrix: (2, 2), maps an output pixel's (row, column) offset from the centre to the input
            pixel's, in pixels.

    Returns:
        (..., H, W).
    """
    height, width = images.shape[-2:]
    row = torch.arange(height)[:, None] - (height - 1) / 2  # (H, 1)
    column = torch.arange(width) - (width - 1) / 2  # (W,)
    # grid_sample counts from -1 to 1, the outer edges of the border pixels, and x before y.
    scale = torch.tensor([2 / width, 2 / height], dtype=images.dtype)
    along_row, along_column = (matrix.flip(0).to(images.dtype) * scale[:, None]).T  # (x, y) each
    grid = along_row[:, None, None] * row + along_column[:, None, None] * column  # (2, H, W)
    flat = images.reshape(1, -1, height, width)
    out = F.grid_sample(
        flat, grid.permute(1, 2, 0)[None], padding_mode="reflection", align_corners=False
    )
    return out.view(images.shape)
