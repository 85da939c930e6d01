"""The losses that train an enhancer and a guidance (method.md, 3 and 4), over whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

# The totals of method.md, 3: warm-up IDENTITY * L_id(WARMUP_STAGES); then IN_ROUNDS * IDENTITY *
# L_id(ROUND_STAGES) + PROMPT * L_prompt for CLIP-LIT and Latent, + RESIDUAL * L_res for RAVE.
IDENTITY_WEIGHT = 25.0
IDENTITY_IN_ROUNDS = 0.9
PROMPT_GUIDANCE_WEIGHT = 320.0
RESIDUAL_GUIDANCE_WEIGHT = 6 * PROMPT_GUIDANCE_WEIGHT
WARMUP_STAGES = (1.0, 1.0, 1.0, 1.0, 1.0)
ROUND_STAGES = (1.0, 1.0, 1.0, 1.0, 0.5)
LOGIT_SCALE = 100.0  # of cosines, CLIP's own
REFINEMENT_WEIGHT = 200.0
# Levels: (margin of the backlit images to the next and to the last level, margin of the others).
REFINEMENT_MARGINS = {2: (1.0, 0.0), 3: (0.9, 0.2), 4: (0.9, 0.1)}


def identity_loss(
    stages_y: Sequence[Tensor], stages_x: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Compare feature maps: the sum over the batch of sum_k w_k * mean squared difference.

    A sum over the batch, not a mean: the batch size changes its weight against the guidance
    (method.md, 3).

    Args:
        stages_y: the enhanced images' maps, each (N, C, h, w).
        stages_x: the input images' maps, likewise; computed without gradients.
        weights: one for each map; where an encoder has fewer maps than weights, the last count.
    """
    weights = weights[-len(stages_y) :]
    return sum(
        weight * len(y) * F.mse_loss(y, x)
        for weight, y, x in zip(weights, stages_y, stages_x, strict=True)
    )


def guidance_logits(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Score embeddings against guidance vectors: `100 * cos`.

    Args:
        embeddings: (N, D), L2-normalised.
        vectors: (2, D): backlit, well-lit; of any length.

    Returns:
        (N, 2).
    """
    return LOGIT_SCALE * embeddings @ F.normalize(vectors, dim=-1).T


def prompt_guidance_loss(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Average the probability of "backlit" that two guidance vectors give to enhanced images.

    Args:
        embeddings: (N, D), L2-normalised.
        vectors: (2, D): backlit, well-lit.
    """
    return guidance_logits(embeddings, vectors).softmax(dim=-1)[:, 0].mean()


def residual_guidance_loss(
    embeddings: Tensor, residual: Tensor, threshold: Tensor | float
) -> Tensor:
    """Average the squared distance of enhanced images from `threshold` along the residual.

    Args:
        embeddings: (N, D), L2-normalised.
        residual: (D,), L2-normalised; or (N, D), one for each image.
        threshold: t = p . r, where the well-lit images lie; or (N,).
    """
    return ((embeddings * residual).sum(dim=-1) - threshold).square().mean()


def ranking_loss(higher: Tensor, lower: Tensor, margin: float) -> Tensor:
    """Ask that `higher` exceeds `lower`, element by element, by a margin: mean hinge.

    Args:
        higher: probabilities of "backlit", (N,), of the level that should look worse.
        lower: likewise, of the better level.
        margin: in probability.
    """
    return (margin - (higher - lower)).clamp(min=0).mean()


def refinement_loss(probabilities: Sequence[Tensor]) -> Tensor:
    """Ask two to four levels of light to follow each other in P(backlit): 200 * sum of hinges.

    Every level must look better lit than the one before it, and the first differ plainly from the
    second and from the last. The paper's order, the older round's result below the newer one's:
    the released code has the two the wrong way round (method.md, 4).

    Args:
        probabilities: P(backlit) of each level, (N,) each, from worst to best: backlit images,
            enhanced by the older round, by the newer round (none, one or both), well-lit images.
    """
    large, small = REFINEMENT_MARGINS[len(probabilities)]
    worst, *better = probabilities
    loss = ranking_loss(worst, better[-1], large)
    if len(better) > 1:
        loss = loss + ranking_loss(worst, better[0], large)
        for lower, upper in pairwise(better):
            loss = loss + ranking_loss(lower, upper, small)
    return REFINEMENT_WEIGHT * loss
