"""The enhancer: a network without down-sampling that estimates a light map (docs/method.md 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pooling import Crop, ExactAveragePool, upsample

LEAKY_SLOPE = 0.2
POOL_BINS = (1, 2, 3, 6)  # on an axis, of PPM1's adaptive average pools
LIGHT_MAP_EPSILON = 1e-9  # keeps x / light_map finite where the light map is 0
INIT_STD = 0.02  # every convolution weight starts at N(0, 0.02)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the image's size."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, padding_mode: str) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W); a single row or column is its own reflection."""
        height, width = x.shape[-2:]
        if self.padding_mode == "reflect" and min(height, width) == 1:
            twice = x.expand(-1, -1, max(height, 2), max(width, 2))  # torch reflects two or more
            return super().forward(twice)[..., :height, :width]
        return super().forward(x)


class ResidualBlock(nn.Module):
    """`lrelu(conv2(lrelu(conv1(h))) + h)`, no bias, reflect padding in training too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels, channels, bias=False, padding_mode="reflect")
        self.conv2 = Conv3x3(channels, channels, bias=False, padding_mode="reflect")

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        out = self.conv2(F.leaky_relu_(self.conv1(h), LEAKY_SLOPE))
        return F.leaky_relu_(out.add_(h), LEAKY_SLOPE)


class PyramidPooling(nn.Module):
    """Add what the whole image looks like at four coarse scales to every pixel's features."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                ExactAveragePool(bins), nn.Conv2d(channels, reduced, 1, bias=False), nn.PReLU()
            )
            for bins in POOL_BINS
        )
        fused = channels + reduced * len(POOL_BINS)
        self.fuse = nn.Sequential(
            Conv3x3(fused, channels, bias=False, padding_mode="zeros"), nn.PReLU()
        )

    def forward(
        self, h: Tensor, crop: Crop | None = None, averages: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Map (N, C, H, W) to the same shape.

        Args:
            h: features of the whole image, or of a crop.
            crop: where in the image `h` lies; None if it is the whole image.
            averages: for a crop, the image's averages (N, C, bins, bins) over each of POOL_BINS.
        """
        if averages is None:
            maps = [branch(h) for branch in self.features]
        else:
            maps = [branch[1:](a) for branch, a in zip(self.features, averages, strict=True)]
        crop = crop or Crop.whole(*h.shape[-2:])
        return self.fuse(torch.cat([h, *(upsample(m, crop) for m in maps)], dim=1))


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
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the features (N, 32, H, W) before the pyramid pooling."""
        h = F.leaky_relu_(self.cond1(x), LEAKY_SLOPE)
        return self.ResidualBlock2(self.ResidualBlock1(h))

    def decode(
        self, h: Tensor, crop: Crop | None = None, averages: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Map `encode`'s features (N, 32, H, W), or a crop's as in PPM1, to light maps."""
        h = self.PPM1(h, crop, averages)
        h = self.ResidualBlock4(self.ResidualBlock3(self.condx(h)))
        h = self.ResidualBlock6(self.ResidualBlock5(self.condy(h)))
        return F.relu(self.cond_add1(h))


def new_enhancer(
    start_light_map: float | None = None, device: torch.device | str = "cpu"
) -> UNetEnhancer:
    """Make an enhancer with fresh weights from torch's global generator, for training.

    Args:
        start_light_map: None for the method's N(0, 0.02), whose light map is near 0 everywhere.
            A value gives larger weights (Kaiming's; the second convolution of each residual block
            x 0.3, the last one x 0.1) and a light map near it: 1 leaves images as they are. The
            other biases keep torch's default: they are all that a black image can be lifted by.
        device: where it is to be trained. Its memory format is the faster one there: NCHW on a CPU
            with AVX2 alone, whose channels-last weight gradients are slow. Nothing is timed, so
            that a resumed run computes what an uninterrupted one does.
    """
    enhancer = UNetEnhancer()
    if start_light_map is not None:
        for name, module in enhancer.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
                module.weight.data *= 0.3 if name.endswith("conv2") else 1.0
        enhancer.cond_add1.weight.data *= 0.1
        nn.init.constant_(enhancer.cond_add1.bias, start_light_map)
    nchw = torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return enhancer.to(
        device, memory_format=torch.contiguous_format if nchw else torch.channels_last
    )


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
        light_map = enhancer(images)
    return enhance(images, light_map)
