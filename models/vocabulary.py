"""CLIP's text side: every token of its vocabulary as a text, and exact text features."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from models.encoders import CLIPEncoder
from utils.errors import UserError

VOCABULARY_SIZE = 49408  # token ids of CLIP's byte pair encoding (docs/method.md 5)
TEXT_BATCH = 128  # on a CPU as many activations as its cache holds


def require_text(clip: nn.Module, name: str) -> None:
    """Check that a model has the text transformer of OpenAI's CLIP: causal, read at its end token.

    Args:
        clip: an encoder's network.
        name: of the encoder, for the error.

    Raises:
        UserError: it has none, or another one, whose tokens or positions work otherwise.
    """
    if not (
        isinstance(clip, open_clip.CLIP)
        and clip.text_pool_type == "argmax"
        and clip.attn_mask is not None
        and clip.vocab_size == VOCABULARY_SIZE
        and isinstance(clip.text_projection, Tensor)
    ):
        raise UserError(
            f"{name} has no text transformer of OpenAI's kind, which words and prompts need; take "
            "a CLIP such as ViT-B-32, ViT-B-16, ViT-L-14 or RN50 as the guidance encoder"
        )


def text_features(clip: nn.Module, token_embeddings: Tensor, ends: Tensor) -> Tensor:
    """Read texts, given as token embeddings, by CLIP's frozen text transformer.

    The transformer is causal, so that nothing after an end token can change its result: positions
    after the last end token are not computed. Differentiable in `token_embeddings`.

    Args:
        clip: an open_clip model that `require_text` accepts.
        token_embeddings: (N, L, width), without the positional embedding; L up to the context's.
        ends: (N,) int64, each text's end position.

    Returns:
        (N, D), not normalised.
    """
    length = int(ends.max()) + 1
    x = token_embeddings[:, :length] + clip.positional_embedding[:length]  # (N, L, width)
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    at_end = x[torch.arange(len(x), device=x.device), ends]  # (N, width)
    return clip.ln_final(at_end) @ clip.text_projection


def embed_vocabulary(encoder: CLIPEncoder) -> tuple[list[str], Tensor]:
    """Embed every text of the vocabulary (docs/method.md 5).

    Returns:
        V texts and their embeddings (V, D), not normalised, on the CPU.

    Raises:
        UserError: the encoder has no text side of OpenAI's kind.
    """
    require_text(encoder.model, encoder.name)
    texts = vocabulary_texts()
    return texts, embed_texts(encoder.model, texts)


def vocabulary_texts() -> list[str]:
    """Decode every token id 0..49407 to its text, equal texts once; 48,930 remain."""
    return list(
        dict.fromkeys(open_clip.decode(token) for token in torch.arange(VOCABULARY_SIZE)[:, None])
    )


@torch.no_grad()
def embed_texts(clip: nn.Module, texts: list[str], batch_size: int = TEXT_BATCH) -> Tensor:
    """Embed texts as `clip.encode_text` does, but those of a length together, without padding.

    Args:
        clip: an open_clip model that `require_text` accepts.
        texts: V of them, in any order; those of equal tokens are computed once.
        batch_size: how many the transformer sees at once.

    Returns:
        (V, D), not normalised, on the CPU.
    """
    device = clip.text_projection.device
    tokens = open_clip.tokenize(texts, clip.context_length)  # (V, context)
    tokens, rows = tokens.unique(dim=0, return_inverse=True)
    ends = tokens.argmax(dim=1)  # the end token has the highest id
    features = torch.empty(len(tokens), clip.text_projection.shape[1])
    for end in ends.unique():
        for batch in (ends == end).nonzero()[:, 0].split(batch_size):
            embedded = clip.token_embedding(tokens[batch, : end + 1].to(device))
            features[batch] = text_features(clip, embedded, ends[batch].to(device)).cpu()
    return features[rows]
