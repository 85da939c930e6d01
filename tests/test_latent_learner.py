import math

import pytest
import torch
import torch.nn.functional as F

from models.latent_learner import LatentPromptLearner
from models.losses import refinement_loss
from utils import checkpoint
from utils.errors import UserError


def golden_learner(golden):
    learner = LatentPromptLearner(512)
    with torch.no_grad():
        learner.guidance_embeddings.copy_(golden["prompt_vectors"])
    return learner


def close(actual, expected):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_initial_vectors_are_standard_normal():
    learner = LatentPromptLearner(4000, torch.Generator().manual_seed(0))
    again = LatentPromptLearner(4000, torch.Generator().manual_seed(0))
    vectors = learner.vectors()
    assert torch.equal(vectors, again.vectors())
    assert vectors.shape == (2, 4000)
    assert vectors.mean().item() == pytest.approx(0, abs=0.05)
    assert vectors.std().item() == pytest.approx(1, abs=0.05)


def test_logits_are_a_hundred_cosines():
    learner = LatentPromptLearner(2)
    with torch.no_grad():
        learner.guidance_embeddings.copy_(torch.tensor([[3.0, 0.0], [0.5, 0.5]]))
    logits = learner.logits(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    diagonal = 100 / math.sqrt(2)
    torch.testing.assert_close(logits, torch.tensor([[100.0, diagonal], [0.0, diagonal]]))


def test_logits_and_cross_entropy_are_the_released_codes(golden):
    learner = golden_learner(golden)
    logits = learner.logits(golden["features"][0, :, 0])
    close(logits.detach(), golden["latent_logits"])
    loss = F.cross_entropy(logits, golden["labels"])
    loss.backward()
    close(loss.detach(), golden["latent_ce"])
    close(learner.guidance_embeddings.grad, golden["latent_ce_grad"])


@pytest.mark.parametrize("levels", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
def test_refinement_is_the_released_codes(golden, levels):
    learner = golden_learner(golden)
    features = golden["features"][list(levels), :, 0]  # (levels, N, D)
    loss = refinement_loss([learner.logits(level).softmax(-1)[:, 0] for level in features])
    loss.backward()
    close(loss.detach(), golden[f"latent_rank{len(levels)}"])
    close(learner.guidance_embeddings.grad, golden[f"latent_rank{len(levels)}_grad"])


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.8, 0.3], 1.0 - 0.5),
        ([0.8, 0.4, 0.3], (0.9 - 0.5) + (0.9 - 0.4) + (0.2 - 0.1)),
        ([0.9, 0.5, 0.45, 0.3], (0.9 - 0.6) + (0.9 - 0.4) + (0.1 - 0.05) + 0.0),
        ([1.0, 0.1, 0.0, 0.0], 0.1),  # only the newer round and the well-lit one are too close
        ([0.5, 0.5, 0.5, 0.5], 0.9 + 0.9 + 0.1 + 0.1),
    ],
)
def test_refinement_margins(probabilities, expected):
    levels = [torch.full((3,), value) for value in probabilities]
    assert refinement_loss(levels).item() == pytest.approx(200 * expected, rel=1e-5)


def test_older_round_ranks_below_the_newer():
    backlit, older, newer, well_lit = torch.tensor([[0.99], [0.05], [0.02], [0.0]])
    right = refinement_loss([backlit, older, newer, well_lit])
    wrong = refinement_loss([backlit, newer, older, well_lit])
    assert right < wrong


@pytest.mark.parametrize("prefix", ["", "module."])
def test_restores_with_and_without_the_prefix(tmp_path, prefix):
    vectors = torch.randn(2, 6)
    checkpoint.save({f"{prefix}guidance_embeddings": vectors}, tmp_path / "guidance.pth")
    learner = LatentPromptLearner(6)
    learner.restore(tmp_path / "guidance.pth")
    assert torch.equal(learner.vectors(), vectors)


def test_saves_the_released_format(tmp_path):
    learner = LatentPromptLearner(6)
    checkpoint.save_weights(learner, tmp_path / "guidance.pth")
    weights = torch.load(tmp_path / "guidance.pth", weights_only=True)
    assert list(weights) == ["module.guidance_embeddings"]
    assert torch.equal(weights["module.guidance_embeddings"], learner.vectors())


def test_refuses_prompts_and_other_lengths(tmp_path):
    prompts = tmp_path / "prompts.pth"
    checkpoint.save({"module.prompt_embedding": torch.zeros(2, 77, 6)}, prompts)
    with pytest.raises(UserError, match="prompt_embedding is unknown"):
        LatentPromptLearner(6).restore(prompts)
    longer = tmp_path / "longer.pth"
    checkpoint.save_weights(LatentPromptLearner(8), longer)
    with pytest.raises(UserError, match=r"length 6.*\(2, 8\) instead of \(2, 6\)"):
        LatentPromptLearner(6).restore(longer)
