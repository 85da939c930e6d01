"""CLIP's text side: every token of its vocabulary as a text, and exact text features."""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders import CLIPEncoder
from utils.errors import UserError

VOCABULARY_SIZE = 49408  # token ids of CLIP's byte pair encoding (docs/method.md 5)
TEXT_BATCH = 512  # how many texts the transformer sees at once
TEXTS_PER_ROW = 16  # of them behind one start token


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
def embed_texts(clip: nn.Module, texts: list[str]) -> Tensor:
    """Embed texts as `clip.encode_text` does, but those of a length together, without padding.

    Args:
        clip: an open_clip model that `require_text` accepts.
        texts: V of them, in any order; those of equal tokens are computed once.

    Returns:
        (V, D), not normalised, on the CPU.
    """
    device = clip.text_projection.device
    tokens = open_clip.tokenize(texts, clip.context_length)  # (V, context)
    tokens, rows = tokens.unique(dim=0, return_inverse=True)
    ends = tokens.argmax(dim=1)  # the end token has the highest id
    features = torch.empty(len(tokens), clip.text_projection.shape[1])
    for end in ends.unique():
        for batch in (ends == end).nonzero()[:, 0].split(TEXT_BATCH):
            features[batch] = features_behind_one_start(clip, tokens[batch, : end + 1].to(device))
    return features[rows]


def features_behind_one_start(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Read texts of one length, several of them in a row behind a single start token.

    The transformer is causal and every text begins with the start token, whose activations are
    therefore the same in all: a mask that lets each token see the start and its own text alone
    gives exactly what each text by itself gives.

    Args:
        clip: an open_clip model that `require_text` accepts.
        tokens: (N, L), each from its start to its end token.

    Returns:
        (N, D), not normalised.
    """
    count, length = tokens.shape
    tokens = torch.cat([tokens, tokens[:1].expand(-count % TEXTS_PER_ROW, -1)])  # whole rows
    starts = tokens[::TEXTS_PER_ROW, :1]
    tokens = torch.cat([starts, tokens[:, 1:].reshape(len(starts), -1)], dim=1)  # (rows, W)

    text = torch.arange(TEXTS_PER_ROW, device=tokens.device).repeat_interleave(length - 1)
    place = torch.arange(1, length, device=tokens.device).repeat(TEXTS_PER_ROW)
    text, place = F.pad(text, (1, 0), value=-1), F.pad(place, (1, 0))  # (W,), with the start's
    sees = (text[:, None] == text) & (place[:, None] >= place) | (place == 0)
    mask = torch.zeros_like(sees, dtype=clip.attn_mask.dtype).masked_fill(~sees, -torch.inf)

    x = clip.token_embedding(tokens) + clip.positional_embedding[place]  # (rows, W, width)
    x = clip.transformer(x, attn_mask=mask)[:, 1:]
    at_end = x.reshape(-1, length - 1, x.shape[-1])[:count, -1]  # (N, width)
    return clip.ln_final(at_end) @ clip.text_projection
