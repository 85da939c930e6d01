"""The enhancer: a network without down-sampling that estimates a light map (method.md, 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
POOL_BINS = (1, 2, 3, 6)  # PPM1's adaptive average pools
LIGHT_MAP_EPSILON = 1e-9  # keeps x / light_map finite where the light map is 0
INIT_STD = 0.02  # every convolution weight starts at N(0, 0.02)


class ResidualBlock(nn.Module):
    """`lrelu(conv2(lrelu(conv1(h))) + h)`, no bias, reflect padding in training and inference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kind = dict(padding=1, padding_mode="reflect", bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 3, **kind)
        self.conv2 = nn.Conv2d(channels, channels, 3, **kind)
