"""What a residual vector means, in words, and how stable it is."""

from __future__ import annotations

import torch
from torch import Tensor

from models.residual import Residual, build_residual, token_scores

RESAMPLES = 200  # of the bootstrap
RESAMPLES_AT_ONCE = 20  # in memory, as weights of the embeddings
TABLE_TOKENS = 50


def bootstrap_stability(
    backlit: Tensor, well_lit: Tensor, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Measure the stability of r by bootstrap: the mean cosine between resampled vectors.

    Each vector is built from two folders drawn with replacement from the given ones, of the same
    sizes. 1 means that other photographs of the kind would give the same vector.

    Args:
        backlit: (N, D), L2-normalised embeddings.
        well_lit: (M, D), likewise.
        resamples: vectors, at least 2.
        seed: of the draws.

    Returns:
        The mean over all pairs of vectors, in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)

    def shares(embeddings: Tensor) -> Tensor:
        """How often each of N embeddings is drawn, over N."""
        drawn = torch.randint(len(embeddings), (len(embeddings),), generator=generator)
        return drawn.bincount(minlength=len(embeddings)).to(embeddings.dtype) / len(embeddings)

    vectors = []
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        block = range(first, min(first + RESAMPLES_AT_ONCE, resamples))
        weights = zip(*[(shares(backlit), shares(well_lit)) for _ in block], strict=True)
        n, p = (
            torch.tensordot(torch.stack(each), embeddings, dims=1)  # means, (block, D)
            for each, embeddings in zip(weights, (backlit, well_lit), strict=True)
        )
        vectors += [build_residual(n[[k]], p[[k]]).r for k in range(len(block))]
    vectors = torch.stack(vectors)  # (resamples, D)
    # The sum over all ordered pairs of two different vectors: of all pairs, less the diagonal.
    pairs = vectors.sum(dim=0).square().sum() - vectors.square().sum()
    cells = vectors[0].numel() // vectors.shape[-1]
    return float(pairs / (resamples * (resamples - 1) * cells))


def token_table(
    texts: list[str],
    vocabulary: Tensor,
    residual: Residual,
    shifted: Residual | None = None,
    count: int = TABLE_TOKENS,
) -> list[dict[str, str | int | float]]:
    """List the tokens nearest to and farthest from r, before the shift and after it.

    Args:
        texts: V of them.
        vocabulary: (V, D), their embeddings.
        residual: before the shift.
        shifted: after it, if there was one.
        count: tokens of each list.

    Returns:
        Rows with `vector` (before, after), `end` (nearest, farthest), `rank` from 1, `token`, and
        its cosines `score_before` and `score_after` (empty without a shift).
    """
    before = token_scores(vocabulary, residual.r)
    after = None if shifted is None else token_scores(vocabulary, shifted.r)
    rankings = {"before": before} if after is None else {"before": before, "after": after}
    rows = []
    for vector, scores in rankings.items():
        order = scores.argsort(stable=True).tolist()
        for end, ranked in (("nearest", order[::-1][:count]), ("farthest", order[:count])):
            for rank, index in enumerate(ranked, 1):
                row = {"vector": vector, "end": end, "rank": rank, "token": texts[index]}
                row["score_before"] = float(before[index])
                row["score_after"] = "" if after is None else float(after[index])
                rows.append(row)
    return rows
