"""The enhancer's criterion: frozen encoders and the totals of method.md, 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.encoders import CLIPEncoder, TimmEncoder
from models.losses import (
    IDENTITY_IN_ROUNDS,
    IDENTITY_WEIGHT,
    ROUND_STAGES,
    WARMUP_STAGES,
    identity_loss,
)

CALIBRATION_IMAGES = 32  # set the scales of a text-free encoder's feature maps
LUMA = (65.481, 128.553, 24.966)  # BT.601, 16-235 scale, for RGB in [0, 1]


@dataclass(frozen=True)
class Criterion:
    """Compare enhanced images with their inputs and with what guides them.

    Args:
        guidance_encoder: embeds for the guidance.
        identity_encoder: gives the feature maps; it may be the same object, then one pass serves.
        identity_scale: multiplies the identity loss everywhere; 1 is the method.
    """

    guidance_encoder: CLIPEncoder | TimmEncoder
    identity_encoder: CLIPEncoder | TimmEncoder
    identity_scale: float = 1.0

    def calibrate(self, backlit: Tensor) -> None:
        """Scale a text-free identity encoder's maps by typical inputs (N, 3, H, W) in [0, 1]."""
        if isinstance(self.identity_encoder, TimmEncoder):
            self.identity_encoder.calibrate(backlit)

    def warm_up(self, enhanced: Tensor, backlit: Tensor) -> dict[str, Tensor | float]:
        """Total of the warm-up, `25 * L_id`, and the PSNR that says whether the image is kept.

        Args:
            enhanced: (N, 3, H, W) in [0, 1].
            backlit: what was enhanced, likewise.

        Returns:
            "loss", and "psnr", which is the "score" too.
        """
        stages = self.identity_encoder.feature_maps(enhanced)
        loss = identity_loss(stages, self._input_stages(backlit), WARMUP_STAGES)
        psnr = luma_psnr(enhanced, backlit)
        loss = IDENTITY_WEIGHT * self.identity_scale * loss
        return {"loss": loss, "psnr": psnr, "score": psnr}

    def round(
        self, enhanced: Tensor, backlit: Tensor, guidance: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor | float]:
        """Total of a round, the guidance and `0.9 * 25 * L_id`.

        Args:
            enhanced: (N, 3, H, W) in [0, 1].
            backlit: what was enhanced, likewise.
            guidance: maps embeddings (N, D) to the weighted guidance loss.

        Returns:
            "loss", its parts "guidance" and "identity", and "score", minus the loss.
        """
        if self.guidance_encoder is self.identity_encoder:
            embeddings, stages = self.guidance_encoder.embed_and_feature_maps(enhanced)
        else:
            embeddings = self.guidance_encoder.embed(enhanced)
            stages = self.identity_encoder.feature_maps(enhanced)
        identity = identity_loss(stages, self._input_stages(backlit), ROUND_STAGES)
        identity = IDENTITY_IN_ROUNDS * IDENTITY_WEIGHT * self.identity_scale * identity
        guided = guidance(embeddings)
        loss = guided + identity
        return {"loss": loss, "guidance": guided, "identity": identity, "score": -loss.item()}

    @torch.no_grad()
    def _input_stages(self, backlit: Tensor) -> list[Tensor]:
        return self.identity_encoder.feature_maps(backlit)


@torch.no_grad()
def luma_psnr(enhanced: Tensor, backlit: Tensor) -> float:
    """PSNR in dB between batches (N, 3, H, W) in [0, 1], on BT.601 luma with peak 255."""
    luma = torch.tensor(LUMA, device=enhanced.device).view(3, 1, 1)
    difference = ((enhanced.float() - backlit.float()) * luma).sum(dim=1)
    return float(10 * torch.log10(255**2 / difference.square().mean().clamp(min=1e-10)))
