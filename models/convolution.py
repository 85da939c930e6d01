"""Convolutions whose weight gradients are not slow on older CPUs.

oneDNN convolves channels-last images faster than NCHW ones, forwards and for the input gradient.
Not so for the weight gradient: where a CPU has AVX2 but not AVX-512, it is several times slower
(64 channels, 512 x 512: 22 GFLOP/s against NCHW's 78), and the slowest part of training. There
that gradient is computed from copies in NCHW. The rule asks for the CPU's kind and measures
nothing, so that a resumed run computes to the last bit what an uninterrupted one does.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHT_GRADIENT_IN_NCHW = torch.backends.cpu.get_cpu_capability() == "AVX2"


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """Convolve with stride 1 and padding by zeros, as `F.conv2d` does.

    Args:
        x: (N, C, H, W).
        weight: (D, C, h, w).
        bias: (D,).
        padding: pixels of zeros on each side.

    Returns:
        (N, D, H', W').
    """
    plain = (
        not WEIGHT_GRADIENT_IN_NCHW
        or not (torch.is_grad_enabled() and weight.requires_grad)
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
    )
    if plain:
        return F.conv2d(x, weight, bias, padding=padding)
    return _Convolution.apply(x, weight, bias, padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        differentiate = partial(
            torch.ops.aten.convolution_backward,
            bias_sizes=weight.shape[:1],
            stride=[1, 1],
            padding=[ctx.padding] * 2,
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=1,
        )
        x_gradient = weight_gradient = bias_gradient = None
        if for_x:
            x_gradient, _, _ = differentiate(gradient, x, weight, output_mask=[True, False, False])
        if for_weight or for_bias:
            _, weight_gradient, bias_gradient = differentiate(
                _to_nchw(gradient),
                _to_nchw(x),
                weight.contiguous(),
                output_mask=[False, for_weight, for_bias],
            )
        return x_gradient, weight_gradient, bias_gradient, None


def _to_nchw(images: Tensor) -> Tensor:
    """Do what `images.contiguous()` does, several times faster from channels-last.

    Torch transposes matrices in blocks, and other tensors element by element.
    """
    result = torch.empty(images.shape, dtype=images.dtype)
    for copy, image in zip(result, images, strict=True):
        copy.flatten(1).copy_(image.flatten(1))
    return result
