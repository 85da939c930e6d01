"""The totals of the method (docs/method.md 3 and 4): the only place where they are put together.

Criteria of the enhancer map enhanced images and their inputs to named terms; those of the guidance
map what it says of a batch to a loss. All minimise "loss".

A batch may be computed in parts. Given each part's `share` of the batch's items, the parts' terms
add up to the whole batch's: the identity loss is a sum over the images, everything else a mean.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders import Encoder
from models.losses import (
    identity_loss,
    p_backlit,
    prompt_guidance_loss,
    ranking_loss,
    residual_guidance_loss,
)

# Weights of the enhancer's totals (docs/method.md 3)
IDENTITY_WEIGHT = 25.0
IDENTITY_IN_ROUNDS = 0.9  # times that, after the warm-up
GUIDANCE_WEIGHT = 320.0
RESIDUAL_FACTOR = 6.0  # times that, for RAVE
WARM_UP_MAPS = (1.0, 1.0, 1.0, 1.0, 1.0)  # of the five feature maps in L_id
ROUND_MAPS = (1.0, 1.0, 1.0, 1.0, 0.5)

# The refinement's ranking (docs/method.md 4). Number of levels: (margin of the backlit images to
# the next and to the last level, margin between the others).
RANKING_WEIGHT = 200.0
RANKING_MARGINS = {2: (1.0, 0.0), 3: (0.9, 0.2), 4: (0.9, 0.1)}

LUMA = (65.481, 128.553, 24.966)  # BT.601, 16-235 scale, for RGB in [0, 1]

Terms = dict[str, Tensor]


class WarmUpCriterion:
    """Keep the image: `25 * L_id` with equal weights of the feature maps.

    Args:
        identity_encoder: gives the feature maps.
        identity_scale: multiplies the identity loss; 1 is the method.
    """

    def __init__(self, identity_encoder: Encoder, identity_scale: float = 1.0) -> None:
        self.identity_encoder = identity_encoder
        self.weight = IDENTITY_WEIGHT * identity_scale

    def __call__(self, enhanced: Tensor, backlit: Tensor, share: float = 1.0) -> Terms:
        """Compare enhanced images (N, 3, H, W) in [0, 1] with their inputs, likewise.

        Returns:
            "loss", and "psnr" in dB, which says whether the image is kept.
        """
        maps = self.identity_encoder.feature_maps(enhanced)
        loss = identity_loss(maps, input_maps(self.identity_encoder, backlit), WARM_UP_MAPS)
        return {"loss": self.weight * loss, "psnr": share * luma_psnr(enhanced, backlit)}


class PromptCriterion:
    """CLIP-LIT and CLIP-LIT-Latent: `320 * L_prompt + 0.9 * 25 * L_id`.

    Args:
        guidance_encoder: embeds for the guidance.
        identity_encoder: gives the feature maps; it may be the same object, then one pass serves.
        vectors: the guidance's (2, D): backlit, well-lit.
        identity_scale: multiplies the identity loss; 1 is the method.
    """

    def __init__(
        self,
        guidance_encoder: Encoder,
        identity_encoder: Encoder,
        vectors: Tensor,
        identity_scale: float = 1.0,
    ) -> None:
        self.encoders = guidance_encoder, identity_encoder
        self.vectors = vectors
        self.identity_scale = identity_scale

    def __call__(self, enhanced: Tensor, backlit: Tensor, share: float = 1.0) -> Terms:
        """Compare enhanced images (N, 3, H, W) in [0, 1] with their inputs, likewise.

        Returns:
            The terms of `round_terms`, and "p_backlit", the mean probability of "backlit".
        """
        embeddings, identity = embed_and_compare(*self.encoders, enhanced, backlit)
        guidance = share * prompt_guidance_loss(embeddings, self.vectors)
        return round_terms(guidance, self.identity_scale * identity) | {"p_backlit": guidance}


class ResidualCriterion:
    """RAVE: `6 * 320 * L_res + 0.9 * 25 * L_id`.

    Args:
        guidance_encoder: embeds for the guidance.
        identity_encoder: gives the feature maps; it may be the same object, then one pass serves.
        r: the residual vector (D,), L2-normalised, or (cells, D).
        t: its threshold (), or (cells,).
        identity_scale: multiplies the identity loss; 1 is the method.
    """

    def __init__(
        self,
        guidance_encoder: Encoder,
        identity_encoder: Encoder,
        r: Tensor,
        t: Tensor,
        identity_scale: float = 1.0,
    ) -> None:
        self.encoders = guidance_encoder, identity_encoder
        self.r, self.t = r, t
        self.identity_scale = identity_scale

    def __call__(
        self,
        enhanced: Tensor,
        backlit: Tensor,
        partners: Tensor | None = None,
        has_partner: Tensor | None = None,
        share: float = 1.0,
    ) -> Terms:
        """Compare enhanced images (N, 3, H, W) in [0, 1] with their inputs, likewise.

        Args:
            enhanced: the results.
            backlit: their inputs.
            share: of the batch's images.
            partners: well-lit images of the same scenes, likewise, whose embeddings guide them
                instead of r and t; None: r and t guide all (the method).
            has_partner: (N,) bool, where `partners` holds one.

        Returns:
            The terms of `round_terms`.
        """
        embeddings, identity = embed_and_compare(*self.encoders, enhanced, backlit)
        wanted = None
        if partners is not None:
            with torch.no_grad():
                wanted = self.encoders[0].embed(partners)
        distance = residual_guidance_loss(embeddings, self.r, self.t, wanted, has_partner)
        return round_terms(share * distance, self.identity_scale * identity, RESIDUAL_FACTOR)


class ClassificationCriterion:
    """The guidance's initialisation: cross-entropy of logits, label 0 backlit, 1 well-lit."""

    def __call__(self, logits: Tensor, labels: Tensor, share: float = 1.0) -> Terms:
        """Map logits (N, 2) and labels (N,) to "loss"."""
        return {"loss": share * F.cross_entropy(logits, labels)}


class RankingCriterion:
    """The guidance's refinement: levels of light must follow each other in P(backlit).

    `200 *` the sum of hinges: every level must look better lit than the one before it, and the
    backlit images differ plainly from the next and from the last level. The older round stands
    below the newer one, which is the paper's order; the released code swaps them
    (docs/method.md 4).
    """

    def __call__(self, logits: Tensor, share: float = 1.0) -> Terms:
        """Map the guidance's logits of two to four levels to "loss".

        Args:
            logits: (N, levels, 2), from worst to best: backlit images, enhanced by the older
                round, by the newer round (none, one or both), well-lit images.
            share: of the batch's tuples.
        """
        worst, *better = p_backlit(logits).unbind(dim=1)  # (N,) each
        large, small = RANKING_MARGINS[logits.shape[1]]
        loss = ranking_loss(worst, better[-1], large)
        if len(better) > 1:
            loss = loss + ranking_loss(worst, better[0], large)
            for lower, upper in pairwise(better):
                loss = loss + ranking_loss(lower, upper, small)
        return {"loss": RANKING_WEIGHT * share * loss}


def round_terms(guidance: Tensor, identity: Tensor, factor: float = 1.0) -> Terms:
    """Weight and add a round's losses.

    Args:
        guidance: L_prompt or L_res.
        identity: L_id, with the weights of a round.
        factor: of the guidance, in "loss" alone.

    Returns:
        "loss"; its parts "guidance" and "identity"; and "extension", the same sum without
        `factor`: a round is extended while it is above `thre_train` (docs/method.md 7).
    """
    guidance = GUIDANCE_WEIGHT * guidance
    identity = IDENTITY_IN_ROUNDS * IDENTITY_WEIGHT * identity
    return {
        "loss": factor * guidance + identity,
        "guidance": factor * guidance,
        "identity": identity,
        "extension": guidance + identity,
    }


def embed_and_compare(
    guidance_encoder: Encoder, identity_encoder: Encoder, enhanced: Tensor, backlit: Tensor
) -> tuple[Tensor, Tensor]:
    """Embed enhanced images (N, 3, H, W) as (N, D), and compute their L_id in a round."""
    if guidance_encoder is identity_encoder:
        embeddings, maps = guidance_encoder.embed_and_feature_maps(enhanced)
    else:
        embeddings = guidance_encoder.embed(enhanced)
        maps = identity_encoder.feature_maps(enhanced)
    return embeddings, identity_loss(maps, input_maps(identity_encoder, backlit), ROUND_MAPS)


@torch.no_grad()
def input_maps(identity_encoder: Encoder, backlit: Tensor) -> list[Tensor]:
    """Feature maps of input images (N, 3, H, W), which need no gradient."""
    return identity_encoder.feature_maps(backlit)


@torch.no_grad()
def luma_psnr(enhanced: Tensor, backlit: Tensor) -> Tensor:
    """The images' mean PSNR in dB, on BT.601 luma with peak 255; batches (N, 3, H, W) in [0, 1]."""
    luma = torch.tensor(LUMA, device=enhanced.device).view(3, 1, 1)
    difference = ((enhanced.float() - backlit.float()) * luma).sum(dim=1)  # (N, H, W)
    error = difference.square().mean(dim=(1, 2)).clamp(min=1e-10)  # (N,)
    return (10 * torch.log10(255**2 / error)).mean()
