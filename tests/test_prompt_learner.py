from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from models.encoders import load_encoder
from models.latent_learner import LatentPromptLearner
from models.losses import refinement_loss
from models.prompt_learner import PromptLearner, end_position
from utils import checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def encoder(shared):
    return load_encoder("ViT-B-32", shared / "golden" / "tiny_clip_vit.pt")


@pytest.fixture(scope="module")
def tiny_clip():
    """An encoder small enough to build anywhere, with random weights."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg=dict(layers=1, width=64, head_width=32, image_size=32, patch_size=16),
        text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2),
    ).requires_grad_(False)
    return SimpleNamespace(name="tiny", has_text=True, model=model)


def golden_learner(encoder, golden):
    learner = PromptLearner(encoder)
    with torch.no_grad():
        learner.prompt_embedding.copy_(golden["prompt_embedding"])
    return learner


def close(actual, expected):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_initial_prompt_is_the_released_codes(encoder, golden):
    learner = PromptLearner(encoder)
    assert torch.equal(learner.prompt_embedding, golden["prompt_embedding_init"])


def test_text_features_are_the_released_codes(encoder, golden):
    close(golden_learner(encoder, golden).vectors().detach(), golden["prompt_text_features"])


def test_logits_and_cross_entropy_are_the_released_codes(encoder, golden):
    learner = golden_learner(encoder, golden)
    logits = learner.logits(golden["features"][0, :, 0])
    close(logits.detach(), golden["prompt_logits"])
    loss = F.cross_entropy(logits, golden["labels"])
    loss.backward()
    close(loss.detach(), golden["prompt_ce"])
    close(learner.prompt_embedding.grad, golden["prompt_ce_grad"])


@pytest.mark.parametrize("levels", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
def test_refinement_is_the_released_codes(encoder, golden, levels):
    learner = golden_learner(encoder, golden)
    features = golden["features"][list(levels), :, 0]  # (levels, N, D)
    loss = refinement_loss([learner.logits(level).softmax(-1)[:, 0] for level in features])
    loss.backward()
    close(loss.detach(), golden[f"prompt_rank{len(levels)}"])
    close(learner.prompt_embedding.grad, golden[f"prompt_rank{len(levels)}_grad"])


def full_length_vectors(learner, clip):
    """Compute every position, as open_clip's own `encode_text` does."""
    h = learner.prompt_embedding + clip.positional_embedding
    h = clip.ln_final(clip.transformer(h, attn_mask=clip.attn_mask))
    return h[:, learner.end] @ clip.text_projection


@pytest.mark.parametrize("length", [1, 16, 74])
def test_stopping_at_the_end_token_is_exact(tiny_clip, length):
    learner = PromptLearner(tiny_clip, length)
    with torch.no_grad():
        learner.prompt_embedding += 0.1 * torch.randn_like(learner.prompt_embedding)
    target = torch.randn(2, 16)
    gradients = []
    for vectors in (learner.vectors(), full_length_vectors(learner, tiny_clip.model)):
        (gradient,) = torch.autograd.grad((vectors * target).sum(), learner.prompt_embedding)
        gradients.append(gradient)
    torch.testing.assert_close(learner.vectors(), full_length_vectors(learner, tiny_clip.model))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0][:, length + 2 :].abs().max() == 0


def test_an_untrained_prompt_reads_as_its_text(tiny_clip):
    learner = PromptLearner(tiny_clip, 3)
    tokens = open_clip.tokenize("X X X")
    expected = tiny_clip.model.encode_text(tokens).expand(2, -1)
    torch.testing.assert_close(learner.vectors(), expected)


def test_only_the_prompt_is_a_weight(tiny_clip, tmp_path):
    learner = PromptLearner(tiny_clip)
    assert [name for name, _ in learner.named_parameters()] == ["prompt_embedding"]
    checkpoint.save_weights(learner, tmp_path / "prompt.pth")
    weights = torch.load(tmp_path / "prompt.pth", weights_only=True)
    assert list(weights) == ["module.prompt_embedding"]
    assert weights["module.prompt_embedding"].shape == (2, 77, 32)


def trained(learner, steps=5):
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, weight_decay=1e-3)
    embeddings = F.normalize(torch.randn(4, 16), dim=-1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(learner.logits(embeddings), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    return learner


def test_training_lowers_the_cross_entropy(tiny_clip):
    torch.manual_seed(1)
    embeddings = F.normalize(torch.randn(4, 16), dim=-1)
    labels = torch.tensor([0, 1, 0, 1])
    torch.manual_seed(1)  # `trained` draws the same
    learner = PromptLearner(tiny_clip)
    before = F.cross_entropy(learner.logits(embeddings), labels)
    after = F.cross_entropy(trained(learner, 20).logits(embeddings), labels)
    assert after < 0.5 * before


@pytest.mark.parametrize("prefix", ["", "module."])
def test_restores_with_and_without_the_prefix(tiny_clip, tmp_path, prefix):
    prompts = trained(PromptLearner(tiny_clip)).prompt_embedding.detach()
    checkpoint.save({f"{prefix}prompt_embedding": prompts}, tmp_path / "prompt.pth")
    learner = PromptLearner(tiny_clip)
    learner.restore(tmp_path / "prompt.pth")
    assert torch.equal(learner.prompt_embedding, prompts)


def test_refuses_latent_vectors_and_other_shapes(tiny_clip, tmp_path):
    path = tmp_path / "guidance.pth"
    checkpoint.save_weights(LatentPromptLearner(16), path)
    with pytest.raises(UserError, match=r"prompt.*guidance_embeddings is unknown"):
        PromptLearner(tiny_clip).restore(path)
    for shape in ((2, 77, 64), (2, 60, 32)):
        checkpoint.save({"module.prompt_embedding": torch.randn(shape)}, path)
        with pytest.raises(UserError, match=r"instead of \(2, 77, 32\)"):
            PromptLearner(tiny_clip).restore(path)


@pytest.mark.parametrize("words", [4, 16, 74])
def test_refuses_prompts_of_another_length(tiny_clip, tmp_path, words):
    learner = trained(PromptLearner(tiny_clip, words))
    assert end_position(learner.prompt_embedding) == words + 1
    checkpoint.save_weights(learner, tmp_path / "prompt.pth")
    PromptLearner(tiny_clip, words).restore(tmp_path / "prompt.pth")
    with pytest.raises(UserError, match=f"--length_prompt {words}"):
        PromptLearner(tiny_clip, 10).restore(tmp_path / "prompt.pth")


def test_refuses_a_blank_prompt(tiny_clip, tmp_path):
    checkpoint.save({"module.prompt_embedding": torch.zeros(2, 77, 32)}, tmp_path / "prompt.pth")
    with pytest.raises(UserError, match="0 words"):
        PromptLearner(tiny_clip).restore(tmp_path / "prompt.pth")


def test_a_prompt_must_fit_the_context(tiny_clip):
    for words in (0, 75):
        with pytest.raises(UserError, match="1 to 74"):
            PromptLearner(tiny_clip, words)


def test_an_encoder_without_text_is_refused():
    text_free = SimpleNamespace(name="timm/some_net", has_text=False)
    with pytest.raises(UserError, match=r"timm/some_net has no text side.*clip-lit-latent"):
        PromptLearner(text_free)
