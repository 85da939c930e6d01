import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data as photographs
from torchvision.transforms import functional as TF

from data.squares import CentreCrop, resized
from models.encoders import CLIPEncoder, TimmEncoder, _light_maps, _spread
from training.encoder_weights import load_encoder
from utils.errors import UserError

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


@pytest.fixture(scope="module")
def vit(tiny_vit):
    return load_encoder("ViT-B-32", tiny_vit)


@pytest.fixture(scope="module")
def resnet(tiny_resnet):
    return load_encoder("RN101", tiny_resnet)


@pytest.fixture(scope="module")
def lite0():
    return load_encoder("timm/tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(0))


# Both kinds


@pytest.mark.parametrize("name", ["vit", "resnet", "lite0"])
def test_embeddings_are_normalised_and_differentiable(name, images, request):
    encoder = request.getfixturevalue(name)
    leaf = images.clone().requires_grad_()
    embeddings = encoder.embed(leaf)
    assert embeddings.shape == (2, encoder.dim)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    embeddings[:, 0].sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet", "lite0"])
def test_one_pass_gives_both(name, images, request):
    encoder = request.getfixturevalue(name)
    embeddings, maps = encoder.embed_and_feature_maps(images)
    assert torch.allclose(embeddings, encoder.embed(images), atol=1e-6)
    alone = encoder.feature_maps(images)
    assert len(maps) == len(alone) == 5
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, alone, strict=True))


def test_inputs_are_resized_without_antialias_and_normalised(vit, images):
    resized = TF.resize(images, [224, 224], TF.InterpolationMode.BILINEAR, antialias=False)
    assert torch.allclose(vit.prepare(images), TF.normalize(resized, MEAN, STD), atol=1e-6)
    larger = torch.rand(1, 3, 300, 500)
    resized = TF.resize(larger, [224, 224], TF.InterpolationMode.BILINEAR, antialias=False)
    assert torch.allclose(vit.prepare(larger), TF.normalize(resized, MEAN, STD), atol=1e-6)


def test_folder_preprocessing_is_clips_own(vit):
    pixels = photographs.coffee()
    expected = open_clip.image_transform(224, is_train=False)(Image.fromarray(pixels))
    crop = torch.from_numpy(resized(pixels, CentreCrop(224)))
    assert torch.allclose(vit.prepare(crop[None] / 255)[0], expected, atol=1e-6)
    assert resized(np.zeros((300, 30, 3), np.uint8), CentreCrop(224)).shape == (3, 224, 224)


def test_frozen_whatever_is_asked(resnet):
    resnet.train()
    assert not any(module.training for module in resnet.modules())


def test_weights_in_halves_are_converted(images):
    model = timm.create_model("lcnet_035").half()
    encoder = TimmEncoder("lcnet", model, 64, MEAN, STD)
    assert encoder.embed(images).dtype == torch.float32


# CLIP


def test_feature_maps_are_the_stem_and_the_layers(resnet, images):
    sizes = [tuple(values.shape[1:]) for values in resnet.feature_maps(images)]
    width = sizes[0][0]
    expected = [(width, 56, 56)]
    expected += [(width * 4 * 2**level, 56 // 2**level, 56 // 2**level) for level in range(4)]
    assert sizes == expected


def test_transformer_has_no_feature_maps(vit, images):
    with pytest.raises(UserError, match=r"no feature maps.*RN101"):
        vit.feature_maps(images)


def test_wraps_a_given_clip(images):
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CLIP(16, vision, text).eval()
    encoder = CLIPEncoder("mine", model, 32, (0.0, 0.1, 0.2), (1.0, 2.0, 3.0))
    assert (encoder.name, encoder.dim, encoder.has_text) == ("mine", 16, True)
    assert not encoder.needs_calibration
    x = F.interpolate(images, (32, 32), mode="bilinear")
    x = (x - torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1)) / torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    expected = model.encode_image(x, normalize=True)
    assert torch.allclose(encoder.embed(images), expected, atol=1e-6)


# Text-free encoders


def test_embedding_is_the_pooled_maps_at_strides_4_and_8(lite0, images):
    maps = lite0.model.forward_intermediates(lite0.prepare(images), intermediates_only=True)
    assert [values.shape[1] for values in maps[1:3]] == [24, 40] and lite0.dim == 64
    parts = [F.normalize(values.flatten(2).mean(2), dim=1) for values in maps[1:3]]
    expected = torch.cat(parts, dim=1) / 2**0.5
    assert torch.allclose(lite0.embed(images), expected, atol=1e-6)
    assert not lite0.has_text


def test_chosen_maps_and_a_grid(images):
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050").eval()
    encoder = TimmEncoder("small", model, 64, MEAN, STD, map_indices=(2, 1), grid=2)
    maps = model.forward_intermediates(
        encoder.prepare(images), indices=[1, 2], intermediates_only=True
    )
    corners = [  # of the first cell; the maps' sides are 8 and 4
        F.normalize(values[..., : values.shape[2] // 2, : values.shape[3] // 2].mean((2, 3)), dim=1)
        for values in maps
    ]
    expected = torch.cat(corners, dim=1) / 2**0.5
    embeddings = encoder.embed(images)
    assert embeddings.shape == (2, 4, encoder.dim)
    assert torch.allclose(embeddings[:, 0], expected, atol=1e-5)
    assert embeddings.norm(dim=2).flatten().tolist() == pytest.approx([1] * 8, abs=1e-5)
    with pytest.raises(UserError, match=r"small has the feature maps 0 to 4, not \(2, 5\)"):
        TimmEncoder("small", model, 64, MEAN, STD, map_indices=(2, 5))


def test_embedding_says_lighter_of_photographs_not_seen(lite0):
    photos = [photographs.astronaut(), photographs.coffee(), photographs.chelsea()]
    crops = [photo[top : top + 140, left : left + 140] for photo in photos
             for top in (0, 150) for left in (0, 150, 250)]  # fmt: skip
    light = torch.stack([TF.to_tensor(crop) for crop in crops])
    dark = light**2.5
    p, n = (lite0.embed(side[:6]).mean(0) for side in (light, dark))  # the astronaut's
    r = F.normalize(p - n, dim=0)
    scores = torch.stack([lite0.embed(dark[6:] ** gamma) @ r for gamma in (1, 0.6, 0.35)])
    assert (scores.diff(dim=0) > 0.1).all()  # the deepest map's rise by 0.02 to 0.04


def test_calibrated_maps_have_unit_variance(images):
    encoder = load_encoder("timm/tf_efficientnet_lite0")
    assert encoder.needs_calibration
    raw = encoder.feature_maps(images)
    encoder.calibrate(images)
    assert [s.var().item() for s in encoder.feature_maps(images)] == pytest.approx(
        [1.0] * 5, abs=1e-4
    )
    other = load_encoder("timm/tf_efficientnet_lite0")
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.feature_maps(images)[0], encoder.feature_maps(images)[0])
    assert not torch.equal(raw[0], other.feature_maps(images)[0])


def test_maps_of_other_architectures():
    assert _light_maps([4, 8, 16, 32]) == [0, 1]
    assert _light_maps([16] * 12) == [4, 5, 6, 7]
    assert _spread(4, 5) == [0, 1, 2, 3]
    assert _spread(12, 5) == [0, 3, 6, 8, 11]
