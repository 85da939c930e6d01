"""The enhancer: a network without down-sampling that estimates a light map (docs/method.md 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.convolution import convolve
from models.pooling import BinSums

LEAKY_SLOPE = 0.2
POOL_BINS = (1, 2, 3, 6)  # on an axis, of PPM1's adaptive average pools
LIGHT_MAP_EPSILON = 1e-9  # keeps x / light_map finite where the light map is 0
INIT_STD = 0.02  # every convolution weight starts at N(0, 0.02)


@dataclass(frozen=True)
class Window:
    """Where a crop lies in its image: rows top..bottom and columns left..right of height x width.

    It is either the whole image, which convolutions pad as usual, or a crop with a halo on every
    side. A convolution takes a pixel off each side of such a crop, and computes exactly what the
    whole image gives there. At the image's border the halo reaches beyond it.
    """

    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int

    @classmethod
    def whole(cls, height: int, width: int) -> Window:
        """The window that is an image."""
        return cls(0, 0, height, width, height, width)

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole image without a halo."""
        return self == Window.whole(self.height, self.width)

    @property
    def area(self) -> int:
        """How many pixels it holds."""
        return (self.bottom - self.top) * (self.right - self.left)

    def expand(self, pixels: int) -> Window:
        """Add so many pixels on each side, or take them off if they are negative."""
        return replace(
            self,
            top=self.top - pixels,
            left=self.left - pixels,
            bottom=self.bottom + pixels,
            right=self.right + pixels,
        )

    def inside(self) -> Window:
        """The part of this window that is not beyond the image's border."""
        return replace(
            self,
            top=max(self.top, 0),
            left=max(self.left, 0),
            bottom=min(self.bottom, self.height),
            right=min(self.right, self.width),
        )

    def crop(self, image: Tensor, of: Window) -> Tensor:
        """Cut this window out of `image` (..., h, w), which covers the window `of`."""
        rows = slice(self.top - of.top, self.bottom - of.top)
        columns = slice(self.left - of.left, self.right - of.left)
        return image[..., rows, columns]


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of a window: a whole image keeps its size, another one shrinks."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, padding_mode: str) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias, padding_mode=padding_mode)

    def forward(self, x: Tensor, window: Window) -> tuple[Tensor, Window]:
        """Map (N, C, h, w) covering `window` to (N, C', h', w') covering the window returned.

        Of a window that is not the whole image, `x` is overwritten beyond the image's border.
        """
        return self.partial(x, window, slice(None))

    def partial(self, x: Tensor, window: Window, inputs: slice) -> tuple[Tensor, Window]:
        """Convolve some of the input channels alone."""
        weight = self.weight[:, inputs]
        if not window.is_whole:
            _fill_border(x, window, self.padding_mode)
            return convolve(x, weight, self.bias), window.expand(-1)
        if self.padding_mode == "zeros":
            return convolve(x, weight, self.bias, padding=1), window
        return convolve(_pad_by_reflection(x), weight, self.bias), window


def _pad_by_reflection(x: Tensor) -> Tensor:
    """Add a pixel on each side; an axis of one pixel has no reflection and repeats it."""
    if min(x.shape[-2:]) > 1:
        return F.pad(x, (1, 1, 1, 1), mode="reflect")
    for size, sides in ((x.shape[-1], (1, 1, 0, 0)), (x.shape[-2], (0, 0, 1, 1))):
        x = F.pad(x, sides, mode="reflect" if size > 1 else "replicate")
    return x


def _fill_border(x: Tensor, window: Window, mode: str) -> None:
    """Overwrite the pixels just beyond the image's border with their padding, in place.

    That is what a convolution sees of them; what lies further out only reaches outputs that are
    themselves beyond the border.
    """
    for axis, start, stop, size in (
        (-2, window.top, window.bottom, window.height),
        (-1, window.left, window.right, window.width),
    ):
        inwards = 2 if size > 1 else 1  # an axis of one pixel has no reflection and repeats it
        for beyond, mirrored in ((-1, inwards - 1), (size, size - inwards)):
            if start <= beyond < stop:
                border = x.select(axis, beyond - start)
                if mode == "zeros":
                    border.zero_()
                else:
                    border.copy_(x.select(axis, mirrored - start))


class ResidualBlock(nn.Module):
    """`lrelu(conv2(lrelu(conv1(h))) + h)`, no bias, reflect padding in training too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels, channels, bias=False, padding_mode="reflect")
        self.conv2 = Conv3x3(channels, channels, bias=False, padding_mode="reflect")

    def forward(self, h: Tensor, window: Window) -> tuple[Tensor, Window]:
        """Map (N, C, h, w) to the same channels."""
        out, inner = self.conv1(h, window)
        out, inner = self.conv2(F.leaky_relu_(out, LEAKY_SLOPE), inner)
        out += inner.crop(h, of=window)
        return F.leaky_relu_(out, LEAKY_SLOPE), inner


class PyramidPooling(nn.Module):
    """Add what the whole image looks like at four coarse scales to every pixel's features."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Identity(),  # for `pool`; the released files count it
                nn.Conv2d(channels, reduced, 1, bias=False),
                nn.PReLU(),
            )
            for _ in POOL_BINS
        )
        self.fuse = nn.Sequential(
            Conv3x3(
                channels + reduced * len(POOL_BINS), channels, bias=False, padding_mode="zeros"
            ),
            nn.PReLU(),
        )

    def pool(self, h: Tensor) -> list[Tensor]:
        """Average a whole image's features (N, C, H, W) to (N, C, bins, bins) for each scale."""
        bins = BinSums(*h.shape[-2:], POOL_BINS, h.device)
        return bins.averages(bins.of(h))

    def forward(self, h: Tensor, window: Window, pooled: list[Tensor]) -> tuple[Tensor, Window]:
        """Fuse (N, C, h, w), a window's features, with the whole image's pooled ones.

        The method upsamples the pooled maps, appends them to `h` and convolves it all. Here the
        maps' share of that convolution is computed from the few coarse values that they hold.
        """
        coarse = [
            branch[2](branch[1](averages))
            for branch, averages in zip(self.features, pooled, strict=True)
        ]
        convolution, activation = self.fuse
        channels = h.shape[1]
        weights = convolution.weight[:, channels:].split([m.shape[1] for m in coarse], dim=1)
        fused, inner = convolution.partial(h, window, slice(0, channels))
        fused += convolve_upsampled(coarse, weights, inner).to(fused.dtype)
        return activation(fused), inner


def convolve_upsampled(coarse: Sequence[Tensor], weights: Sequence[Tensor], at: Window) -> Tensor:
    """Upsample coarse maps to the image's size and convolve them there, without doing either.

    Bilinear upsampling is `rows @ map @ columns.T`, and a 3x3 convolution shifts `rows` and
    `columns` by a pixel each way. So the result, too, is a product of small matrices.

    Args:
        coarse: maps (N, c, b, b), upsampled bilinearly with corners aligned; each has its own b.
        weights: for each map the convolution's (C, c, 3, 3); it pads by zeros.
        at: the window of the image to compute the result in.

    Returns:
        (N, C, h, w), the sum over the maps, in channels-last order; in fp32 under autocast too.
    """
    with torch.autocast(coarse[0].device.type, enabled=False):
        halves, columns = [], []
        for values, weight in zip(coarse, weights, strict=True):
            bins = values.shape[-1]
            rows = _shifted_weights(at.top, at.bottom, at.height, bins, values.device)
            columns.append(_shifted_weights(at.left, at.right, at.width, bins, values.device))
            kernel = torch.einsum("ocyx,ncij->nyixjo", weight.float(), values.float())
            half = rows @ kernel.reshape(len(values), 3 * bins, -1)  # (N, h, 3b * C)
            halves.append(half.unflatten(-1, (3 * bins, -1)))
        result = torch.cat(columns, dim=1) @ torch.cat(halves, dim=2)  # (N, h, w, C)
    return result.permute(0, 3, 1, 2)


def _shifted_weights(start: int, stop: int, size: int, bins: int, device: torch.device) -> Tensor:
    """Interpolation weights (stop - start, 3 * bins) of each pixel's three neighbours on an axis.

    They sum to 1 for a neighbour inside the image and are 0 for one outside.
    """
    neighbour = torch.arange(start, stop, device=device)[:, None] + torch.arange(
        -1, 2, device=device
    )  # (n, 3)
    position = neighbour * ((bins - 1) / max(size - 1, 1))
    distance = (position[..., None] - torch.arange(bins, device=device)).abs()
    inside = (neighbour >= 0) & (neighbour < size)
    return ((1 - distance).clamp(min=0) * inside[..., None]).flatten(1)


class UNetEnhancer(nn.Module):
    """Estimate the light map of backlit photographs; 278,790 parameters.

    Args:
        padding_mode: of the four convolutions with a bias: "zeros" in training, "reflect" at
            inference, with the same weights (docs/method.md 1).
    """

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        outer = dict(bias=True, padding_mode=padding_mode)
        self.cond1 = Conv3x3(3, 32, **outer)
        self.cond_add1 = Conv3x3(32, 1, **outer)
        self.condx = Conv3x3(32, 64, **outer)
        self.condy = Conv3x3(64, 32, **outer)
        self.ResidualBlock1 = ResidualBlock(32)
        self.ResidualBlock2 = ResidualBlock(32)
        self.ResidualBlock3 = ResidualBlock(64)
        self.ResidualBlock4 = ResidualBlock(64)
        self.ResidualBlock5 = ResidualBlock(32)
        self.ResidualBlock6 = ResidualBlock(32)
        self.PPM1 = PyramidPooling(32, 8)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1] to light maps (N, 1, H, W), >= 0."""
        h, window = self.encode(x, Window.whole(*x.shape[-2:]))
        return self.decode(h, window, self.PPM1.pool(h))[0]

    def encode(self, x: Tensor, window: Window) -> tuple[Tensor, Window]:
        """Compute the features (N, 32, h, w) that the pyramid pooling sees."""
        h, window = self.cond1(x, window)
        h, window = self.ResidualBlock1(F.leaky_relu_(h, LEAKY_SLOPE), window)
        return self.ResidualBlock2(h, window)

    def decode(self, h: Tensor, window: Window, pooled: list[Tensor]) -> tuple[Tensor, Window]:
        """Map `encode`'s features and the whole image's pooled ones to a light map (N, 1, h, w)."""
        h, window = self.PPM1(h, window, pooled)
        for layer in (
            self.condx,
            self.ResidualBlock3,
            self.ResidualBlock4,
            self.condy,
            self.ResidualBlock5,
            self.ResidualBlock6,
        ):
            h, window = layer(h, window)
        light_map, window = self.cond_add1(h, window)
        return F.relu(light_map), window


def new_enhancer(start_light_map: float | None = None) -> UNetEnhancer:
    """Make an enhancer with fresh weights from torch's global generator, for training.

    Args:
        start_light_map: None for the method's N(0, 0.02), whose light map is near 0 everywhere.
            A value gives larger weights (Kaiming's; the second convolution of each residual block
            x 0.3, the last one x 0.1) and a light map near it: 1 leaves images as they are. The
            other biases keep torch's default: they are all that a black image can be lifted by.
    """
    enhancer = UNetEnhancer()
    if start_light_map is not None:
        for name, module in enhancer.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
                module.weight.data *= 0.3 if name.endswith("conv2") else 1.0
        enhancer.cond_add1.weight.data *= 0.1
        nn.init.constant_(enhancer.cond_add1.bias, start_light_map)
    return enhancer.to(memory_format=torch.channels_last)


def enhance(x: Tensor, light_map: Tensor) -> Tensor:
    """Divide images by their light maps: `clamp(x / (light_map + 1e-9), 0, 1)`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        light_map: (N, 1, H, W), >= 0; computed on in fp32, where 1e-9 is not lost.

    Returns:
        (N, 3, H, W) in [0, 1]; black pixels stay black.
    """
    return (x / (light_map.float() + LIGHT_MAP_EPSILON)).clamp(0, 1)


def enhance_images(enhancer: UNetEnhancer, images: Tensor, amp: bool = False) -> Tensor:
    """Estimate light maps and divide by them, for training.

    Args:
        enhancer: in the mode wanted.
        images: (N, 3, H, W) in [0, 1].
        amp: compute the network in bf16 autocast; the division is in fp32 all the same.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        light_map = enhancer(images.contiguous(memory_format=torch.channels_last))
    return enhance(images, light_map)
