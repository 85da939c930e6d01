import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import models
from models import tiling
from models.enhancer import UNetEnhancer
from models.pretrained import PhotoEnhancer, load_enhancer
from models.tiling import enhance_photo
from tests.commands import ROOT
from utils.checkpoint import find_weights, restore, save_weights
from utils.errors import UserError

DARK = skimage.data.astronaut()[100:137:1, 80:133] // 3  # (37, 53, 3)


@pytest.fixture(scope="module")
def network() -> PhotoEnhancer:
    return load_enhancer(device="cpu")


def by_hand(pixels, padding="reflect"):
    """The default weights' result, without what is tested here."""
    enhancer = UNetEnhancer(padding).to(memory_format=torch.channels_last)
    restore(enhancer, find_weights(None), "enhancer weights")
    return enhance_photo(enhancer, pixels)


def test_it_pads_as_inference_does(network):
    assert not network.training
    assert np.array_equal(network.enhance(DARK), by_hand(DARK))
    assert np.abs(network.enhance(DARK).astype(int) - by_hand(DARK, "zeros")).max() > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1), (30, 41), (400, 3)], ids=str)
@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2"])
def test_arrays_of_any_size_keep_their_type(network, size, kind):
    photo = np.resize(DARK, (*size, 3)).astype(kind)
    photo = photo * 257 if photo.itemsize == 2 else photo
    photo = photo.astype(kind)
    photo.flags.writeable = False
    result = network.enhance(photo)
    assert (result.shape, result.dtype) == (photo.shape, photo.dtype)
    as_bytes = network.enhance(np.resize(DARK, (*size, 3)))
    scale = 257 if photo.itemsize == 2 else 1
    assert np.abs(result.astype(float) - scale * as_bytes.astype(float)).max() <= scale / 2 + 1


def test_views_are_photographs_too(network):
    flipped = DARK[::-1, ::-1]
    assert np.array_equal(network.enhance(flipped), network.enhance(flipped.copy()))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        *((mode, mode) for mode in ("RGB", "RGBA", "L", "LA", "I;16", "I;16B", "I")),
        *(("1", "L"), ("P", "RGB"), ("PA", "RGBA"), ("CMYK", "RGB"), ("YCbCr", "RGB")),
        *(("HSV", "RGB"), ("RGBa", "RGBA"), ("RGBX", "RGB"), ("La", "LA"), ("LAB", "RGB")),
    ],
)
def test_images_keep_what_their_mode_says(network, mode, expected):
    photo = image_of(mode)
    before = photo.tobytes()
    result = network.enhance(photo)
    assert (result.mode, result.size) == (expected, photo.size)
    assert photo.tobytes() == before
    if expected[-1] == "A":
        straight = photo.convert(expected)
        assert result.getchannel("A").tobytes() == straight.getchannel("A").tobytes()
    if expected.startswith("RGB"):
        colours = np.asarray(photo.convert(expected))[..., :3]
        assert np.array_equal(np.asarray(result)[..., :3], by_hand(colours))
    elif expected.startswith("L"):
        grey = np.asarray(photo.convert(expected).convert("L"))
        assert np.array_equal(
            np.asarray(result.convert("L")), by_hand(np.dstack([grey] * 3))[..., 0]
        )
    else:
        grey = np.asarray(photo).astype(np.uint16)
        assert np.array_equal(np.asarray(result), by_hand(np.dstack([grey] * 3))[..., 0])


def image_of(mode):
    """A dark picture in one of Pillow's modes, with an alpha that varies where there is any."""
    if mode.startswith("I"):
        values = DARK[..., 0].astype("i4") * 257 + 3
        kind = {"I": "i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
        return Image.fromarray(values.astype(kind))
    alpha = np.arange(DARK[..., 0].size).reshape(DARK.shape[:2]) % 200 + 50
    photo = Image.fromarray(np.dstack([DARK, alpha.astype(np.uint8)]))
    match mode:
        case "LAB":
            return Image.frombytes("LAB", photo.size, photo.convert("RGB").tobytes())
        case "PA":
            flat = photo.convert("RGB").quantize(16).convert("PA")
            flat.putalpha(photo.getchannel("A"))
            return flat
        case "La":
            return photo.convert("LA").convert("La")
        case "RGBa":
            return photo.convert("RGBa")
        case "RGBA" | "LA":
            return photo.convert(mode)
        case _:
            return photo.convert("RGB").convert(mode)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (0, 0, 0)), ("L", 0), ("P", 0)])
def test_a_transparent_colour_becomes_alpha(network, mode, key):
    photo = Image.fromarray(DARK).convert(mode)
    photo.paste(key, (0, 0, 20, 10))
    photo.info.update(transparency=key, dpi=(72, 72))
    result = network.enhance(photo)
    assert result.mode == ("LA" if mode == "L" else "RGBA")
    alpha = photo.convert("RGBA").getchannel("A")
    assert alpha.getextrema() == (0, 255)
    assert result.getchannel("A").tobytes() == alpha.tobytes()
    assert result.info == {"dpi": (72, 72)} and "transparency" in photo.info


@pytest.mark.parametrize(("mode", "kept"), [("RGB", True), ("L", True), ("CMYK", False)])
def test_profile_and_exif_are_kept_where_they_hold(network, mode, kept):
    photo = Image.fromarray(DARK).convert(mode)
    photo.info.update(exif=b"Exif", icc_profile=b"profile")
    info = network.enhance(photo).info
    assert info == {"exif": b"Exif"} | ({"icc_profile": b"profile"} if kept else {})


@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
def test_strength_reaches_images_of_all_kinds(network, mode, monkeypatch):
    photo = image_of(mode)
    assert network.enhance(photo, strength=0).tobytes() == photo.tobytes()
    assert network.enhance(photo, 1.0).tobytes() == network.enhance(photo).tobytes()
    half, one, two = (network.enhance(photo, s).tobytes() for s in (0.5, np.float32(1), 2))
    assert half != one != two != half
    monkeypatch.setattr(tiling, "choose_gamma", lambda *given: given[2])
    assert network.enhance(photo, 1, auto_exposure=True).tobytes() == one
    assert network.enhance(photo, 0.5, auto_exposure=True).tobytes() != half


@pytest.mark.parametrize("strength", [-0.1, 3.1, float("nan"), "auto", None])
def test_other_strengths_are_refused(network, strength):
    with pytest.raises(ValueError, match="a strength from 0 to 3, not"):
        network.enhance(DARK, strength)


@pytest.mark.parametrize(
    ("photo", "error", "sentence"),
    [
        ("photo.png", TypeError, "not str"),
        (torch.zeros(3, 4, 5), TypeError, "not Tensor"),
        (DARK[..., 0], ValueError, r"\(H, W, 3\).*not \(37, 53\)"),
        (DARK[..., :2], ValueError, r"not \(37, 53, 2\)"),
        (DARK[None], ValueError, r"not \(1, 37, 53, 3\)"),
        (DARK / 255, ValueError, "float64"),
        (DARK.astype(np.int16), ValueError, "int16"),
        (DARK.astype(np.uint32), ValueError, "uint32"),
        (DARK[:0], ValueError, "no pixels"),
        (Image.new("RGB", (0, 4)), ValueError, "no pixels"),
        (Image.new("I", (4, 4), 70000), ValueError, "70000"),
        (Image.new("I", (4, 4), -1), ValueError, "-1"),
        (Image.new("F", (4, 4)), ValueError, "mode F"),
    ],
)
def test_what_is_no_photograph_is_refused_in_a_sentence(network, photo, error, sentence):
    with pytest.raises(error, match=sentence):
        network.enhance(photo)


def test_weights_are_named_or_a_file(network, tmp_path):
    torch.manual_seed(0)
    other = UNetEnhancer()
    save_weights(other, tmp_path / "other.safetensors")
    loaded = load_enhancer(tmp_path / "other.safetensors", torch.device("cpu"))
    assert all(map(torch.equal, loaded.parameters(), other.parameters()))
    named = load_enhancer("rave_default", "cpu")
    assert all(map(torch.equal, named.parameters(), network.parameters()))
    with pytest.raises(UserError, match="no checkpoint at nothing"):
        load_enhancer("nothing")
    with pytest.raises(UserError, match="no device abacus"):
        load_enhancer(device="abacus")


def test_it_computes_where_it_is():
    network = PhotoEnhancer().to("meta")
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        network.enhance(DARK)


def test_the_package_offers_it_and_loads_nothing_for_it():
    assert models.load_enhancer is load_enhancer
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = models.nothing
    code = "import sys, models; assert not {'torch', 'PIL', 'models.pretrained'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)
