"""CLIP's text side: every token of its vocabulary as a text, and fast exact text features."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from models.encoders import CLIPEncoder, TimmEncoder
from utils.cache import cached_tensor
from utils.errors import UserError

VOCABULARY_SIZE = 49408  # token ids of CLIP's byte pair encoding (method.md, 5)
TEXT_BATCH = 512


def require_text(clip: nn.Module, name: str) -> None:
    """Check that a model has the text transformer of OpenAI's CLIP: causal, read at its end token.

    Args:
        clip: an open_clip model.
        name: of the encoder, for the error.

    Raises:
        UserError: it has another one, whose tokens or positions must be treated otherwise.
    """
    if not (
        isinstance(clip, open_clip.CLIP)
        and clip.text_pool_type == "argmax"
        and clip.attn_mask is not None
        and clip.vocab_size == VOCABULARY_SIZE
        and isinstance(clip.text_projection, Tensor)
    ):
        raise UserError(
            f"the text transformer of {name} is not of OpenAI's kind, which words and prompts need "
            "here; choose a CLIP such as ViT-B-32, ViT-B-16, ViT-L-14 or RN50"
        )


def text_features(clip: nn.Module, token_embeddings: Tensor, ends: Tensor) -> Tensor:
    """Read texts, given as token embeddings, by CLIP's frozen text transformer.

    The transformer is causal, so that what comes after an end token cannot change its result:
    positions after the last end token are not computed. Differentiable in `token_embeddings`.

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


def embed_vocabulary(encoder: CLIPEncoder | TimmEncoder) -> tuple[list[str], Tensor]:
    """Embed the vocabulary by an encoder's text side, or take it from the user's cache.

    Args:
        encoder: a CLIP.

    Returns:
        V texts and their embeddings (V, D), not normalised, on the CPU.

    Raises:
        UserError: the encoder has no text side, or not one of OpenAI's kind.
    """
    if not encoder.has_text:
        raise UserError(
            f"--remove_first_n_tokens needs a text encoder, which {encoder.name} has not; leave it "
            "out, or take a CLIP such as ViT-B-32 as --guidance_encoder"
        )
    clip = encoder.model
    require_text(clip, encoder.name)
    texts = vocabulary_texts()
    shape = (len(texts), clip.text_projection.shape[1])
    key = f"vocabulary-{encoder.fingerprint}"
    return texts, cached_tensor(key, shape, lambda: embed_texts(clip, texts))


def vocabulary_texts() -> list[str]:
    """Decode every token id 0..49407 to its text, equal texts once; 48,930 remain."""
    tokenizer = open_clip.SimpleTokenizer()
    return list(dict.fromkeys(tokenizer.decode([token]) for token in range(VOCABULARY_SIZE)))


@torch.no_grad()
def embed_texts(clip: nn.Module, texts: list[str], batch_size: int = TEXT_BATCH) -> Tensor:
    """Embed texts as `clip.encode_text` would, each by no more positions than it has.

    Texts of equal tokens are computed once, texts of equal length together, cut to that length
    (exact: the transformer is causal).

    Args:
        clip: an open_clip model that `require_text` accepts.
        texts: V of them, in any order.
        batch_size: how many the transformer sees at once.

    Returns:
        (V, D), not normalised, on the CPU.
    """
    tokens = open_clip.SimpleTokenizer()(texts, clip.context_length)  # (V, context)
    ends = tokens.argmax(dim=1)  # the end token is the highest; the first of them is read
    cut = tokens[:, : int(ends.max()) + 1] * (torch.arange(int(ends.max()) + 1) <= ends[:, None])
    distinct, which = cut.unique(dim=0, return_inverse=True)
    ends = distinct.argmax(dim=1)
    features = torch.empty(len(distinct), clip.text_projection.shape[1])
    for end in ends.unique().tolist():
        for rows in (ends == end).nonzero()[:, 0].split(batch_size):
            batch = distinct[rows, : end + 1].to(clip.text_projection.device)
            features[rows] = _features_of_equal_length(clip, batch).cpu()
    return features[which]


def _features_of_equal_length(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Embed texts (N, L) that end at their last position, as (N, D).

    All begin with the start token, which sees only itself: it goes through the layers once, not
    N times. Of the last layer's results only the end token's is used, and computed.
    """
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    start, x = x[:1, :1], x[:, 1:]  # (1, 1, width), (N, L - 1, width)
    blocks = clip.transformer.resblocks
    for block in blocks:
        used = length - 1 if block is not blocks[-1] else 1  # positions whose result is used
        seen = block.ln_1(torch.cat([start.expand(len(x), -1, -1), x], dim=1))
        mask = clip.attn_mask[length - used : length, :length]
        attended = block.attention(seen[:, -used:], seen, seen, mask)
        x = x[:, -used:] + block.ls_1(attended)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        start = block(start)
    return clip.ln_final(x[:, -1]) @ clip.text_projection
