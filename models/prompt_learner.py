"""CLIP-LIT's guidance: two prompts in the space of CLIP's tokens (docs/method.md 4)."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from models.encoders import CLIPEncoder
from models.losses import guidance_logits
from models.vocabulary import require_text, text_features
from utils.errors import UserError

LENGTH_PROMPT = 16  # words "X" of the initial prompt
PADDING_TOLERANCE = 1e-4  # weight decay alone moves the padding, so that all of it stays equal


class PromptLearner(nn.Module):
    """Two learned prompts, backlit and well-lit, read by CLIP's frozen text transformer.

    Both start as the token embedding of "X X ... X". The transformer is causal and its result is
    read at the end token, so that nothing after it counts, and nothing after it is computed.

    Args:
        encoder: a CLIP; frozen, and not among this module's weights.
        length_prompt: words "X" of the initial prompt, 1 to context length - 3: start, end and at
            least one pad, which marks the end for `count_words`, take the rest.

    Raises:
        UserError: the encoder has no text side of the right kind, or no room for the prompt.
    """

    def __init__(self, encoder: CLIPEncoder, length_prompt: int = LENGTH_PROMPT) -> None:
        super().__init__()
        clip = encoder.model
        require_text(clip, encoder.name)
        context = clip.context_length
        if not 1 <= length_prompt <= context - 3:
            raise UserError(
                f"a prompt for this CLIP has 1 to {context - 3} words, not {length_prompt}"
            )
        self._clip = (clip,)  # in a tuple, so that it does not become a submodule
        self.length_prompt = length_prompt
        tokens = open_clip.tokenize(" ".join(["X"] * length_prompt), context)  # (1, context)
        with torch.no_grad():
            embedded = clip.token_embedding(tokens.to(clip.token_embedding.weight.device))
        self.prompt_embedding = nn.Parameter(embedded.repeat(2, 1, 1))  # (2, context, width)

    def vectors(self) -> Tensor:
        """The prompts' text features (2, D): backlit, well-lit; not normalised."""
        end = self.length_prompt + 1  # after the start token and the words
        ends = torch.full((2,), end, device=self.prompt_embedding.device)
        return text_features(self._clip[0], self.prompt_embedding, ends)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Score normalised image embeddings (N, D) as (N, 2), `100 * cos`."""
        return guidance_logits(embeddings, self.vectors())

    def count_words(self) -> int:
        """Count the prompts' words by where their padding begins, of restored weights above all.

        The padding gets no gradient, so that training leaves all of it alike.
        """
        prompts = self.prompt_embedding.detach()
        distances = (prompts - prompts[:, -1:]).abs().amax((0, 2))  # (context,)
        end = max((distances > PADDING_TOLERANCE).nonzero().flatten().tolist(), default=1)
        return end - 1
