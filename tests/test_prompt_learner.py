import open_clip
import pytest
import torch
import torch.nn.functional as F

from models.prompt_learner import PromptLearner
from training.encoder_weights import load_encoder
from utils import checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def encoder(tiny_vit):
    return load_encoder("ViT-B-32", tiny_vit)


def full_length_vectors(learner, clip):
    """Compute every position, as open_clip's own `encode_text` does."""
    h = learner.prompt_embedding + clip.positional_embedding
    h = clip.ln_final(clip.transformer(h, attn_mask=clip.attn_mask))
    return h[:, learner.length_prompt + 1] @ clip.text_projection


@pytest.mark.parametrize("length", [1, 16, 74])
def test_stopping_at_the_end_token_is_exact(encoder, length):
    learner = PromptLearner(encoder, length)
    torch.manual_seed(0)
    with torch.no_grad():
        learner.prompt_embedding += 0.1 * torch.randn_like(learner.prompt_embedding)
    target = torch.randn(2, encoder.dim)
    gradients = []
    for vectors in (learner.vectors(), full_length_vectors(learner, encoder.model)):
        (gradient,) = torch.autograd.grad((vectors * target).sum(), learner.prompt_embedding)
        gradients.append(gradient)
    close = {"rtol": 1e-4, "atol": 1e-4}
    expected = full_length_vectors(learner, encoder.model)
    torch.testing.assert_close(learner.vectors(), expected, **close)
    torch.testing.assert_close(*gradients, **close)
    assert gradients[0][:, length + 2 :].abs().max() == 0


def test_an_untrained_prompt_reads_as_its_text(encoder):
    learner = PromptLearner(encoder, 3)
    expected = encoder.model.encode_text(open_clip.tokenize("X X X")).expand(2, -1)
    torch.testing.assert_close(learner.vectors(), expected, rtol=1e-4, atol=1e-4)


def test_only_the_prompt_is_a_weight(encoder, tmp_path):
    learner = PromptLearner(encoder)
    assert [name for name, _ in learner.named_parameters()] == ["prompt_embedding"]
    checkpoint.save_weights(learner, tmp_path / "prompt.pth")
    weights = torch.load(tmp_path / "prompt.pth", weights_only=True)
    assert list(weights) == ["module.prompt_embedding"]
    assert weights["module.prompt_embedding"].shape == (2, 77, 64)


def train(learner, steps):
    """Take steps of Adam with weight decay; return the losses."""
    generator = torch.Generator().manual_seed(1)
    embeddings = F.normalize(torch.randn(4, 512, generator=generator), dim=-1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, weight_decay=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(learner(embeddings), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_lowers_the_cross_entropy(encoder):
    losses = train(PromptLearner(encoder), 20)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("words", [4, 16, 74])
def test_words_are_counted_after_training(encoder, words):
    learner = PromptLearner(encoder, words)
    train(learner, 5)
    assert learner.count_words() == words
    with torch.no_grad():
        learner.prompt_embedding.zero_()
    assert learner.count_words() == 0


def test_a_prompt_must_fit_the_context(encoder):
    for words in (0, 75):
        with pytest.raises(UserError, match=f"has 1 to 74 words, not {words}"):
            PromptLearner(encoder, words)


def test_an_encoder_without_text_is_refused():
    text_free = load_encoder("timm/tf_efficientnet_lite0")
    with pytest.raises(UserError, match="timm/tf_efficientnet_lite0 has no text transformer"):
        PromptLearner(text_free)
