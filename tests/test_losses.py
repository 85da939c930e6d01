import math

import pytest
import torch

from models.losses import (
    guidance_logits,
    identity_loss,
    p_backlit,
    prompt_guidance_loss,
    ranking_loss,
    residual_guidance_loss,
)


def test_identity_loss_sums_over_the_batch():
    maps = [torch.full((3, 2, 4, 4), 2.0), torch.full((3, 5, 2, 2), 1.0)]
    zeros = [torch.zeros_like(values) for values in maps]
    assert identity_loss(maps, zeros, (1.0, 0.5)).item() == pytest.approx(3 * (4 + 0.5))


def test_identity_loss_of_fewer_maps_takes_the_last_weights():
    maps = [torch.ones(1, 1, 2, 2)] * 2
    zeros = [torch.zeros(1, 1, 2, 2)] * 2
    assert identity_loss(maps, zeros, (8.0, 4.0, 2.0, 1.0, 0.5)).item() == pytest.approx(1 + 0.5)


def test_prompt_guidance_of_an_undecided_image_is_a_half():
    embeddings = torch.tensor([[0.0, 0.0, 1.0]])
    vectors = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
    assert prompt_guidance_loss(embeddings, vectors).item() == pytest.approx(0.5)


def test_prompt_guidance_ignores_the_vectors_lengths():
    embeddings = torch.tensor([[0.6, 0.8]])
    vectors = torch.tensor([[5.0, 0.0], [0.0, 0.2]])
    assert guidance_logits(embeddings, vectors).tolist() == [pytest.approx([60.0, 80.0])]
    expected = 1 / (1 + math.exp(20))
    assert prompt_guidance_loss(embeddings, vectors).item() == pytest.approx(expected, rel=1e-4)


def test_the_first_vector_is_of_backlit_images():
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]])  # (1, 2, 2)
    assert p_backlit(logits).tolist() == [pytest.approx([0.25, 0.75])]


def test_residual_guidance_is_zero_at_the_threshold_and_grows_on_both_sides():
    residual = torch.tensor([1.0, 0.0])
    at, below, above = torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])[:, None]
    assert residual_guidance_loss(at, residual, 0.6).item() == pytest.approx(0)
    assert residual_guidance_loss(below, residual, 0.6).item() == pytest.approx(0.36)
    assert residual_guidance_loss(above, residual, 0.6).item() == pytest.approx(0.16)
    both = torch.cat([below, above])
    assert residual_guidance_loss(both, residual, 0.6).item() == pytest.approx(0.26)


def test_residual_guidance_of_cells():
    axes = torch.eye(2)
    embeddings = torch.tensor([[[0.6, 0.8], [0.8, 0.6]]])  # (1 image, 2 cells, 2)
    found = residual_guidance_loss(embeddings, axes, torch.tensor([0.6, 0.5]))
    assert found.item() == pytest.approx((0 + 0.1**2) / 2)


@pytest.mark.parametrize("cells", [False, True])
def test_an_image_with_a_partner_is_guided_to_it(cells):
    residual, threshold = torch.tensor([1.0, 0.0]), torch.tensor(0.5)
    embeddings = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    partners = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    if cells:
        residual, threshold = residual.repeat(3, 1), threshold.repeat(3)
        embeddings, partners = (each[:, None].repeat(1, 3, 1) for each in (embeddings, partners))
    has_partner = torch.tensor([True, False])
    found = residual_guidance_loss(embeddings, residual, threshold, partners, has_partner)
    assert found.item() == pytest.approx(((0.6**2 + 0.2**2) + 0.1**2) / 2)


def test_ranking_loss_is_a_mean_hinge():
    higher, lower = torch.tensor([0.9, 0.2]), torch.tensor([0.1, 0.5])
    assert ranking_loss(higher, lower, 0.5).item() == pytest.approx((0 + 0.8) / 2)
