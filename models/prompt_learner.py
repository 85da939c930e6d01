"""CLIP-LIT's guidance: two prompts in the space of CLIP's tokens (method.md, 4)."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from models.encoders import CLIPEncoder, TimmEncoder
from models.losses import guidance_logits
from models.vocabulary import require_text, text_features
from utils import checkpoint
from utils.errors import UserError

LENGTH_PROMPT = 16  # words "X" of the initial prompt
PADDING_TOLERANCE = 1e-4  # padding moves by weight decay alone, so all of it stays equal


class PromptLearner(nn.Module):
    """Two learned prompts, backlit and well-lit, read by CLIP's frozen text transformer.

    Both start as the token embedding of "X X ... X". The transformer is causal and its result is
    read at the end token, so nothing after that position counts, and it is not computed.

    Args:
        encoder: a CLIP; frozen, not a part of this module's weights.
        length_prompt: words "X" of the initial prompt, 1 to context length - 3
            (start, end, and one pad, by which `restore` finds the end).

    Raises:
        UserError: the encoder has no text side of the right kind, or no room for the prompt.
    """

    def __init__(
        self, encoder: CLIPEncoder | TimmEncoder, length_prompt: int = LENGTH_PROMPT
    ) -> None:
        super().__init__()
        if not encoder.has_text:
            raise UserError(
                f"{encoder.name} has no text side, which prompts need; take a CLIP such as "
                "ViT-B-32 as --guidance_encoder, or --mode clip-lit-latent"
            )
        clip = encoder.model
        require_text(clip, encoder.name)
        context = clip.context_length
        if not 1 <= length_prompt <= context - 3:
            raise UserError(
                f"a prompt of {length_prompt} words does not fit this CLIP's context; give "
                f"--length_prompt 1 to {context - 3}"
            )
        self._clip = (clip,)  # in a tuple, where Module does not look for parts
        self.end = length_prompt + 1  # the end token comes after the start token and the words
        tokens = open_clip.tokenize(" ".join(["X"] * length_prompt), context)  # (1, context)
        with torch.no_grad():
            embedded = clip.token_embedding(tokens.to(clip.token_embedding.weight.device))
        self.prompt_embedding = nn.Parameter(embedded.repeat(2, 1, 1))  # (2, context, width)

    def vectors(self) -> Tensor:
        """The prompts' text features (2, D): backlit, well-lit; not normalised."""
        ends = torch.full((2,), self.end, device=self.prompt_embedding.device)
        return text_features(self._clip[0], self.prompt_embedding, ends)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Score normalised image embeddings (N, D) as (N, 2), `100 * cos`."""
        return guidance_logits(embeddings, self.vectors())

    def restore(self, path: str | Path) -> None:
        """Load a checkpoint, with or without `module.` in its key.

        Raises:
            UserError: it holds latent vectors or anything else, or a prompt of another context,
                width or number of words.
        """
        checkpoint.restore(self, path, "CLIP-LIT's prompts for this CLIP")
        found = end_position(self.prompt_embedding.detach())
        if found != self.end:
            raise UserError(
                f"{path} holds prompts of {found - 1} words, not of {self.end - 1}; give "
                f"--length_prompt {found - 1}"
            )


def end_position(prompts: Tensor) -> int:
    """Find the end token of prompts (2, context, width): only equal padding comes after it.

    The padding gets no gradient, so that training leaves all of it alike.
    """
    distances = (prompts - prompts[:, -1:]).abs().amax((0, 2))  # (context,)
    return max((distances > PADDING_TOLERANCE).nonzero().flatten().tolist(), default=1)
