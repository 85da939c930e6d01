"""The residual vector: build, shift and interpret it (RAVE; method.md, 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.encoders import CLIPEncoder, TimmEncoder

EMBEDDING_BATCH = 32


@dataclass(frozen=True)
class Residual:
    """A direction from backlit to well-lit in an encoder's space.

    Attributes:
        r: (D,), L2-normalised.
        t: p . r, where well-lit images lie along r.
        n: (D,), the normalised mean of the backlit embeddings.
        p: (D,), likewise of the well-lit ones.
    """

    r: Tensor
    t: float
    n: Tensor
    p: Tensor


@torch.no_grad()
def embed_photos(
    encoder: CLIPEncoder | TimmEncoder,
    photos: Iterable[Image.Image],
    batch_size: int = EMBEDDING_BATCH,
) -> Tensor:
    """Embed photographs in batches with the encoder's own preprocessing (method.md, 2).

    Args:
        encoder: on any device.
        photos: decoded, upright; taken one after another, so a generator keeps few in memory.
        batch_size: how many the encoder sees at once.

    Returns:
        (N, D), L2-normalised, on the CPU.
    """
    embeddings = [
        encoder.embed(torch.stack(batch).to(encoder.mean.device)).cpu()
        for batch in _batches((encoder.preprocess(photo) for photo in photos), batch_size)
    ]
    return torch.cat(embeddings) if embeddings else torch.empty(0, encoder.dim)


def _batches(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def build_residual(backlit: Tensor, well_lit: Tensor) -> Residual:
    """Build the residual vector: from the mean backlit embedding to the mean well-lit one.

    Args:
        backlit: (N, D), L2-normalised embeddings.
        well_lit: (M, D), likewise.
    """
    p = F.normalize(well_lit.mean(dim=0), dim=0)
    n = F.normalize(backlit.mean(dim=0), dim=0)
    r = F.normalize(p - n, dim=0)
    return Residual(r=r, t=float(p @ r), n=n, p=p)
