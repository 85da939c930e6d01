"""CLIP's text side: every token of its vocabulary as a text, and fast exact text features."""

from __future__ import annotations

import re
from itertools import groupby

import open_clip
import torch
from torch import Tensor, nn

from models.encoders import CLIPEncoder, TimmEncoder
from utils.checkpoint import cached_tensor
from utils.errors import UserError

VOCABULARY_SIZE = 49408  # token ids of CLIP's byte pair encoding (method.md, 5)
TEXT_BATCH = 512
PLAIN_WORD = re.compile("[a-z]+ ?")


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
    return list(
        dict.fromkeys(open_clip.decode(token) for token in torch.arange(VOCABULARY_SIZE)[:, None])
    )


def tokenize(texts: list[str], context_length: int) -> list[tuple[int, ...]]:
    """Tokenise as `open_clip.tokenize` does, each text from its start token to its end token.

    Single words of a to z, most of the vocabulary, skip the tokeniser's cleaning: it changes
    nothing in them but a space at the end, and takes twice as long as splitting them.
    """
    tokenizer = open_clip.SimpleTokenizer()
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id

    def encode(text: str) -> list[int]:
        if not PLAIN_WORD.fullmatch(text):
            return tokenizer.encode(text)
        pieces = tokenizer.bpe(text.rstrip(" ")).split(" ")
        return [tokenizer.encoder[piece] for piece in pieces]

    tokens = [(start, *encode(text)[: context_length - 2], end) for text in texts]
    return [ids[: ids.index(end) + 1] for ids in tokens]  # a text may say "<end_of_text>"


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
    projection = clip.text_projection  # (width, D)
    tokens = tokenize(texts, clip.context_length)
    distinct = sorted(set(tokens), key=len)
    features = torch.empty(len(distinct), projection.shape[1])
    row = 0
    for _, group in groupby(distinct, key=len):
        for batch in torch.tensor(list(group)).split(batch_size):
            embedded = _features_of_equal_length(clip, batch.to(projection.device))
            features[row : row + len(batch)] = embedded.cpu()
            row += len(batch)
    rows = {ids: row for row, ids in enumerate(distinct)}
    return features[[rows[ids] for ids in tokens]]


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
