"""Linear layers as 1x1 convolutions: the same sums of products, up to twice as fast on a CPU.

PyTorch hands matrix products in fp32 to MKL, which keeps to AVX2 on processors that are not
Intel's, and convolutions to oneDNN, which uses what the processor has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Map (..., inputs) to (..., outputs), as `F.linear` does; on a CPU by a 1x1 convolution."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, inputs, rows, 1), no copy
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class PointwiseLinear(nn.Module):
    """An `nn.Linear`, its parameters under the same names, computed by `linear`."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight = original.weight
        self.bias = original.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return linear(x, self.weight, self.bias)


class PointwiseAttention(nn.Module):
    """An `nn.MultiheadAttention` in evaluation, its products computed by `linear`."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = original.num_heads
        self.in_proj_weight = original.in_proj_weight
        self.in_proj_bias = original.in_proj_bias
        self.out_proj = PointwiseLinear(original.out_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend from (N, L, width) to (N, S, width) under an additive mask (L, S).

        Args:
            query: (N, L, width).
            key: (N, S, width).
            value: (N, S, width).
            need_weights: must be False; the attention weights are not kept.
            attn_mask: (L, S), added to the scores.

        Returns:
            (N, L, width), and None in the place of the weights.
        """
        if need_weights:
            raise ValueError("the attention weights are not kept")
        if query is key and key is value:
            projected = linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            parts = zip(
                (query, key, value),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
            projected = [linear(x, weight, bias) for x, weight, bias in parts]
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask)  # (N, heads, L, ...)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def use_pointwise(model: nn.Module) -> None:
    """Replace a frozen model's linear layers and attentions in place; its state dict stays equal.

    Attentions that do more than CLIP's (other layouts, sizes of their own for keys or values) stay.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PointwiseLinear(child))
            elif type(child) is nn.MultiheadAttention and _is_plain(child):
                setattr(module, name, PointwiseAttention(child))


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return (
        attention.batch_first
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
