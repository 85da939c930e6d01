import math

import pytest
import torch

from models.latent_learner import LatentPromptLearner
from utils import checkpoint


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
    logits = learner(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    diagonal = 100 / math.sqrt(2)
    torch.testing.assert_close(logits, torch.tensor([[100.0, diagonal], [0.0, diagonal]]))


def test_saves_the_released_format(tmp_path):
    learner = LatentPromptLearner(6)
    checkpoint.save_weights(learner, tmp_path / "guidance.pth")
    weights = torch.load(tmp_path / "guidance.pth", weights_only=True)
    assert list(weights) == ["module.guidance_embeddings"]
    assert torch.equal(weights["module.guidance_embeddings"], learner.vectors())
