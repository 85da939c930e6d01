"""CLIP-LIT-Latent's guidance: two vectors in an encoder's latent space (docs/method.md 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.losses import guidance_logits


class LatentPromptLearner(nn.Module):
    """Two learned vectors, backlit and well-lit, for any encoder, text-free ones too.

    Args:
        dim: the length D of the encoder's embeddings.
        generator: draws the initial vectors, N(0, 1); None takes torch's global one.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.guidance_embeddings = nn.Parameter(torch.randn(2, dim, generator=generator))

    def vectors(self) -> Tensor:
        """The vectors (2, D): backlit, well-lit; not normalised."""
        return self.guidance_embeddings

    def forward(self, embeddings: Tensor) -> Tensor:
        """Score normalised image embeddings (N, D) as (N, 2), `100 * cos`."""
        return guidance_logits(embeddings, self.vectors())
