import json
import time
import urllib.error

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data as photographs
from torchvision.transforms import functional as TF

import utils.download as pretrained
from models.encoders import (
    CLIPEncoder,
    TimmEncoder,
    _light_stages,
    _spread,
    load_encoder,
    load_encoders,
)
from utils.errors import UserError

TINY_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def vit(shared):
    return load_encoder("ViT-B-32", shared / "golden" / "tiny_clip_vit.pt")


@pytest.fixture(scope="module")
def resnet(shared):
    return load_encoder("RN101", shared / "golden" / "tiny_clip_resnet.pt")


@pytest.fixture(scope="module")
def lite0():
    return load_encoder("timm/tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A home and a Hugging Face cache with nothing in them, and no network."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        pretrained.huggingface_hub, "try_to_load_from_cache", lambda repository, file: None
    )

    def fail(request, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(pretrained.urllib.request, "urlopen", fail)
    return tmp_path


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
    embeddings, stages = encoder.embed_and_feature_maps(images)
    assert torch.allclose(embeddings, encoder.embed(images), atol=1e-6)
    alone = encoder.feature_maps(images)
    assert len(stages) == len(alone) == 5
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(stages, alone, strict=True))


def test_inputs_are_resized_without_antialias_and_normalised(vit, images):
    resized = TF.resize(images, [224, 224], TF.InterpolationMode.BILINEAR, antialias=False)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    assert torch.allclose(vit.prepare(images), TF.normalize(resized, mean, std), atol=1e-6)


def test_folder_preprocessing_is_clips_own(vit):
    photo = Image.fromarray(photographs.coffee())
    expected = open_clip.image_transform(224, is_train=False)(photo)
    assert torch.allclose(vit.prepare(vit.preprocess(photo)[None])[0], expected, atol=1e-6)
    assert vit.preprocess(Image.new("L", (30, 300), 128)).shape == (3, 224, 224)


def test_frozen_whatever_is_asked(resnet):
    resnet.train()
    assert not any(module.training for module in resnet.modules())


def test_fingerprint_is_of_the_weights_alone(vit, resnet, shared):
    again = load_encoder("ViT-B/32", shared / "golden" / "tiny_clip_vit.pt")
    assert len(vit.fingerprint) == 64
    assert vit.fingerprint == again.fingerprint != resnet.fingerprint
    before = pretrained.fingerprint({"w": torch.zeros(2, 3, 4, 4)})
    turned = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert pretrained.fingerprint({"w": turned}) == before
    assert pretrained.fingerprint({"w": torch.zeros(2, 3, 16)}) != before
    turned[0, 0, 0, 0] = 1e-30
    assert pretrained.fingerprint({"w": turned}) != before


def test_the_same_encoder_is_loaded_once():
    name = "timm/tf_efficientnet_lite0"
    guidance, identity = load_encoders(name, None, name, None)
    assert guidance is identity


# CLIP


def test_stages_are_the_stem_and_the_layers(resnet, images):
    sizes = [tuple(stage.shape[1:]) for stage in resnet.feature_maps(images)]
    width = sizes[0][0]
    expected = [(width, 56, 56)]
    expected += [(width * 4 * 2**level, 56 // 2**level, 56 // 2**level) for level in range(4)]
    assert sizes == expected


def test_transformer_has_no_stages(vit, images):
    with pytest.raises(UserError, match=r"no feature maps.*RN101"):
        vit.feature_maps(images)


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_open_clip_state_dicts_and_torchscript_load_alike(tmp_path, images):
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip").eval().half().float()
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    nested = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": nested}, tmp_path / "nested.pt")
    plain = CLIPEncoder("tiny-clip", tmp_path / "plain.pt")
    assert plain.input_size == 32 and plain.has_text
    expected = model.encode_image(plain.prepare(images), normalize=True)
    assert torch.allclose(plain.embed(images), expected, atol=1e-6)
    nested = CLIPEncoder("tiny-clip", tmp_path / "nested.pt")
    assert nested.fingerprint == plain.fingerprint

    # OpenAI's own files are TorchScript, and their activation is QuickGELU.
    quick = open_clip.create_model("tiny-clip", force_quick_gelu=True).eval()
    quick.load_state_dict(model.state_dict())
    examples = {
        "encode_image": torch.zeros(1, 3, 32, 32),
        "encode_text": torch.zeros(1, 77, dtype=torch.int),
    }
    quick.attn_mask = quick._buffers.pop("attn_mask").clone()  # theirs is no buffer
    torch.jit.trace_module(quick, examples).save(tmp_path / "openai.pt")
    scripted = CLIPEncoder("ViT-B-32", tmp_path / "openai.pt")
    expected = quick.encode_image(scripted.prepare(images), normalize=True)
    assert torch.allclose(scripted.embed(images), expected, atol=1e-6)
    assert (scripted.embed(images) - plain.embed(images)).abs().max() > 1e-3


def test_openai_file_in_its_cache_is_found_offline(offline, shared, resnet):
    cache = offline / ".cache" / "clip"
    cache.mkdir(parents=True)
    (cache / "RN101.pt").symlink_to(shared / "golden" / "tiny_clip_resnet.pt")
    assert load_encoder("RN101").fingerprint == resnet.fingerprint


@pytest.mark.parametrize("name", ["ViT-B/32", "RN101"])
def test_offline_error_names_file_place_and_flag(offline, name):
    file = f"{name.replace('/', '-')}.pt"
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        load_encoder(name, flag="--identity_weights")
    assert time.monotonic() - start < 5
    for part in (f"/{file}", str(offline / ".cache" / "clip" / file), "--identity_weights"):
        assert part in str(error.value)


def test_wrong_clip_files_and_names_are_sentences(tmp_path):
    with pytest.raises(UserError, match="no model named RN102; did you mean RN101"):
        load_encoder("RN102", tmp_path)
    with pytest.raises(UserError, match=r"missing.pt' is neither a file.*openai.*--clip_weights"):
        load_encoder("RN101", tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pt"):
        load_encoder("RN101", tmp_path / "text.pt")
    torch.save({"visual.conv1.weight": torch.zeros(2, 3, 3, 3).half()}, tmp_path / "half.pt")
    with pytest.raises(UserError, match="does not hold a CLIP model"):
        load_encoder("RN101", tmp_path / "half.pt")


# Text-free encoders


def test_packaged_weights_recognise_a_cat(lite0):
    photo = lite0.preprocess(Image.fromarray(photographs.chelsea()))
    top = lite0.model(lite0.prepare(photo[None])).argmax().item()
    assert top in {281, 282, 285}  # ImageNet: tabby, tiger cat, Egyptian cat


def test_embedding_is_the_pooled_maps_at_strides_4_and_8(lite0, images):
    maps = lite0.model.forward_intermediates(lite0.prepare(images), intermediates_only=True)
    assert [stage.shape[1] for stage in maps[1:3]] == [24, 40] and lite0.dim == 64
    parts = [F.normalize(stage.flatten(2).mean(2), dim=1) for stage in maps[1:3]]
    expected = torch.cat(parts, dim=1) / 2**0.5
    assert torch.allclose(lite0.embed(images), expected, atol=1e-6)
    assert not lite0.has_text


def test_embedding_says_lighter_on_real_backlit_photographs(lite0, shared):
    folder = shared / "photos" / "sice_backlit"

    def load(side: str) -> torch.Tensor:
        paths = sorted((folder / side).iterdir())[:12]
        photos = [np.asarray(Image.open(path).convert("RGB").resize((160, 160))) for path in paths]
        return torch.from_numpy(np.stack(photos)).movedim(3, 1) / 255

    inputs, references = load("input"), load("ref_frame")
    p, n = (lite0.embed(side[::2]).mean(0) for side in (references, inputs))
    r = F.normalize(p - n, dim=0)
    scores = torch.stack([lite0.embed(inputs[1::2] ** gamma) @ r for gamma in (1, 0.6, 0.35)])
    assert (scores.diff(dim=0) > 0).all()
    assert (lite0.embed(references[1::2]) @ r > scores[0]).all()


def test_calibrated_stages_have_unit_variance(images):
    encoder = load_encoder("timm/tf_efficientnet_lite0")
    raw = encoder.feature_maps(images)
    encoder.calibrate(images)
    assert [s.var().item() for s in encoder.feature_maps(images)] == pytest.approx(
        [1.0] * 5, abs=1e-4
    )
    other = load_encoder("timm/tf_efficientnet_lite0")
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.feature_maps(images)[0], encoder.feature_maps(images)[0])
    assert not torch.equal(raw[0], other.feature_maps(images)[0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_file_loads(tmp_path, suffix, images):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050").eval()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    encoder = TimmEncoder("mobilenetv3_small_050", path, stages=(4, 2))
    assert encoder.embedded == [2, 4]
    x = (F.interpolate(images, (224, 224), mode="bilinear") - encoder.mean) / encoder.std
    maps = model.forward_intermediates(x, indices=[2, 4], intermediates_only=True)
    parts = [F.normalize(stage.mean((2, 3)), dim=1) for stage in maps]
    expected = F.normalize(torch.cat(parts, dim=1), dim=1)
    assert torch.allclose(encoder.embed(images), expected, atol=1e-5)


def test_timm_transformer_loads_a_state_dict(tmp_path, images):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # timm's own weights were an .npz once
    torch.save(timm.create_model(name).state_dict(), tmp_path / "vit.pth")
    embeddings, stages = load_encoder(f"timm/{name}", tmp_path / "vit.pth").embed_and_feature_maps(
        images
    )
    assert embeddings.shape == (2, 4 * 192)
    assert [tuple(stage.shape) for stage in stages] == [(2, 192, 14, 14)] * 5


def test_wrong_timm_files_and_names_are_sentences(tmp_path, offline):
    with pytest.raises(UserError, match="no model named resnet19; did you mean resnet18"):
        load_encoder("timm/resnet19")
    with pytest.raises(UserError, match=r"no weights at .*missing\.pth.*--clip_weights"):
        load_encoder("timm/resnet18", tmp_path / "missing.pth")
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold weights of timm's lcnet_035"):
        load_encoder("timm/lcnet_035", tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"model\.safetensors of huggingface.co/timm/lcnet_050"):
        load_encoder("timm/lcnet_050")
    with pytest.raises(UserError, match="the stages 0 to 4"):
        TimmEncoder("tf_efficientnet_lite0", stages=(2, 5))


def test_stages_of_other_architectures():
    assert _light_stages([4, 8, 16, 32]) == [0, 1]
    assert _light_stages([16] * 12) == [4, 5, 6, 7]
    assert _spread(4, 5) == [0, 1, 2, 3]
    assert _spread(12, 5) == [0, 3, 6, 8, 11]
