import math

import pytest
import torch

from models.encoders import load_encoder
from models.losses import (
    ROUND_STAGES,
    WARMUP_STAGES,
    guidance_logits,
    identity_loss,
    prompt_guidance_loss,
    ranking_loss,
    residual_guidance_loss,
)

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def pair(golden):
    """The golden input x and its enhanced y, (2, 3, 256, 256)."""
    x = golden["backlit_u8"] / 255
    return x, (2.5 * x + 0.02).clamp(0, 1).requires_grad_()


@pytest.fixture(scope="module")
def vit(shared):
    return load_encoder("ViT-B-32", shared / "golden" / "tiny_clip_vit.pt")


@pytest.fixture(scope="module")
def resnet(shared):
    return load_encoder("RN101", shared / "golden" / "tiny_clip_resnet.pt")


def assert_golden(loss, y, value, gradient=None):
    assert loss.item() == pytest.approx(value, rel=RELATIVE)
    if gradient is not None:
        (found,) = torch.autograd.grad(loss, y)
        assert (found - gradient).norm() <= RELATIVE * gradient.norm()
        assert (found - gradient).abs().max() <= RELATIVE * gradient.abs().max()


def test_prompt_guidance_is_the_released_one(golden, pair, vit):
    _, y = pair
    loss = prompt_guidance_loss(vit.embed(y), golden["prompt_vectors"])
    assert_golden(loss, y, golden["prompt_guidance_loss"], golden["prompt_guidance_grad"])


def test_residual_guidance_is_the_released_one(golden, pair, vit):
    _, y = pair
    loss = residual_guidance_loss(vit.embed(y), golden["residual"][0], golden["thr"])
    assert_golden(loss, y, golden["residual_guidance_loss"], golden["residual_guidance_grad"])


def test_identity_loss_is_the_released_one(golden, pair, resnet):
    x, y = pair
    with torch.no_grad():
        stages_x = resnet.feature_maps(x)
    stages_y = resnet.feature_maps(y)
    warm_up = identity_loss(stages_y, stages_x, WARMUP_STAGES)
    assert_golden(warm_up, y, golden["identity_loss_warmup"])
    loss = identity_loss(stages_y, stages_x, ROUND_STAGES)
    assert_golden(loss, y, golden["identity_loss"], golden["identity_grad"])


def test_identity_loss_sums_over_the_batch():
    maps = [torch.full((3, 2, 4, 4), 2.0), torch.full((3, 5, 2, 2), 1.0)]
    zeros = [torch.zeros_like(stage) for stage in maps]
    assert identity_loss(maps, zeros, (1.0, 0.5)).item() == pytest.approx(3 * (4 + 0.5))


def test_identity_loss_of_fewer_maps_takes_the_last_weights():
    maps = [torch.ones(1, 1, 2, 2)] * 2
    zeros = [torch.zeros(1, 1, 2, 2)] * 2
    assert identity_loss(maps, zeros, ROUND_STAGES).item() == pytest.approx(1 + 0.5)


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


def test_residual_guidance_is_zero_at_the_threshold_and_grows_on_both_sides():
    residual = torch.tensor([1.0, 0.0])
    at, below, above = torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])[:, None]
    assert residual_guidance_loss(at, residual, 0.6).item() == pytest.approx(0)
    assert residual_guidance_loss(below, residual, 0.6).item() == pytest.approx(0.36)
    assert residual_guidance_loss(above, residual, 0.6).item() == pytest.approx(0.16)
    both = torch.cat([below, above])
    assert residual_guidance_loss(both, residual, 0.6).item() == pytest.approx(0.26)


def test_ranking_loss_is_a_mean_hinge():
    higher, lower = torch.tensor([0.9, 0.2]), torch.tensor([0.1, 0.5])
    assert ranking_loss(higher, lower, 0.5).item() == pytest.approx((0 + 0.8) / 2)
