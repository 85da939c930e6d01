"""CLIP-LIT-Latent's guidance: two vectors in an encoder's latent space (method.md, 4)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.losses import guidance_logits
from utils import checkpoint


class LatentPromptLearner(nn.Module):
    """Two learned vectors, backlit and well-lit; any encoder serves, text-free ones too.

    Args:
        dim: the length D of the encoder's embeddings.
        generator: draws the initial vectors, N(0, 1); None takes the global one.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.guidance_embeddings = nn.Parameter(torch.randn(2, dim, generator=generator))

    def vectors(self) -> Tensor:
        """The vectors (2, D): backlit, well-lit; not normalised."""
        return self.guidance_embeddings

    def logits(self, embeddings: Tensor) -> Tensor:
        """Score normalised image embeddings (N, D) as (N, 2), `100 * cos`."""
        return guidance_logits(embeddings, self.vectors())

    def restore(self, path: str | Path) -> None:
        """Load a checkpoint, with or without `module.` in its key.

        Raises:
            UserError: it holds a prompt or anything else, or vectors of another length.
        """
        dim = self.guidance_embeddings.shape[1]
        checkpoint.restore(self, path, f"CLIP-LIT-Latent's two guidance vectors of length {dim}")
