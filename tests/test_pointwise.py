import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.pointwise import PointwiseAttention, PointwiseLinear, linear, use_pointwise


@pytest.fixture(scope="module")
def pair():
    """A tiny CLIP, and the same with its linear layers replaced."""
    torch.manual_seed(0)
    plain = open_clip.CLIP(
        embed_dim=16,
        vision_cfg=dict(layers=2, width=64, head_width=32, image_size=32, patch_size=16),
        text_cfg=dict(context_length=77, vocab_size=100, width=32, heads=2, layers=2),
    )
    plain = plain.eval().requires_grad_(False)
    replaced = copy.deepcopy(plain)
    use_pointwise(replaced)
    return plain, replaced


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_linear_is_torchs(shape):
    x, weight, bias = torch.randn(shape), torch.randn(7, 5), torch.randn(7)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight))


def test_all_layers_are_replaced_and_no_weight_renamed(pair):
    plain, replaced = pair
    kinds = [type(module) for module in replaced.modules()]
    assert nn.Linear not in kinds
    assert nn.MultiheadAttention not in kinds
    assert kinds.count(PointwiseAttention) == 4
    assert kinds.count(PointwiseLinear) == 4 * 3
    assert list(replaced.state_dict()) == list(plain.state_dict())
    for name, value in replaced.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


def test_images_and_their_gradients_are_equal(pair):
    images = torch.rand(3, 3, 32, 32, requires_grad=True)
    target = torch.randn(3, 16)
    results = []
    for model in pair:
        features = model.encode_image(images)
        (gradient,) = torch.autograd.grad((features * target).sum(), images)
        results.append((features, gradient))
    torch.testing.assert_close(*results)


def test_texts_are_equal_under_the_causal_mask(pair):
    tokens = torch.randint(1, 99, (4, 77))
    torch.testing.assert_close(*(model.encode_text(tokens) for model in pair))


def test_a_query_may_be_a_part_of_its_keys(pair):
    x = torch.randn(2, 6, 64)
    outputs = [
        model.visual.transformer.resblocks[0].attention(x[:, -2:], x, x, torch.zeros(2, 6))
        for model in pair
    ]
    torch.testing.assert_close(*outputs)


def test_other_attentions_stay():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4))
    use_pointwise(model)
    assert all(type(child) is nn.MultiheadAttention for child in model)
