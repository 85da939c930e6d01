"""Dividing by the light map, more or less strongly, against closed forms."""

import numpy as np
import pytest
import skimage.data
import torch

from models import strength as module
from models.enhancer import UNetEnhancer, enhance
from models.strength import choose_gamma, divide
from models.tiling import enhance_photo, photo_light_map
from utils.checkpoint import find_weights, restore

RNG = np.random.default_rng(0)


def noise(dtype, channels=3, size=(40, 30)):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (*size, channels)).astype(dtype)


def flat(value, size=(40, 30)):
    return torch.full((1, 1, *size), float(value))


def mean_luma(pixels):
    """In [0, 1], of 8 bits; grey counts as itself."""
    return (pixels * [0.299, 0.587, 0.114]).sum(axis=2).mean() / 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_0_leaves_a_photograph_and_1_is_the_method(dtype, channels):
    pixels, light_map = noise(dtype, channels), torch.rand(1, 1, 40, 30) * 1.5
    light_map[..., :5] = 0
    assert np.array_equal(divide(pixels, light_map, 0), pixels)
    peak = np.iinfo(pixels.dtype).max
    x = torch.from_numpy(pixels.astype(np.float32) / peak).permute(2, 0, 1)[None]
    exact = enhance(x, light_map).mul(peak).round()[0].permute(1, 2, 0).numpy()
    result = divide(pixels, light_map)
    assert np.array_equal(result, exact) and result.dtype == pixels.dtype
    assert np.array_equal(divide(pixels, light_map, 1.0), exact)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strength", [0.3, 2, 3])
def test_others_are_a_power_of_the_light_map(strength):
    pixels, light_map = noise(np.uint8), torch.rand(1, 1, 40, 30) * 1.5
    light_map[..., :5] = 0
    power = light_map[0, 0, :, :, None].double().numpy() ** strength + 1e-9
    exact = (pixels / power).clip(0, 255)
    assert np.abs(divide(pixels, light_map, strength) - exact).max() < 0.501
    assert not divide(np.zeros_like(pixels), light_map, strength).any()


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_strips_change_nothing(rows, monkeypatch):
    pixels, light_map = noise(np.uint8), torch.rand(1, 1, 40, 30)
    whole = divide(pixels, light_map, 1.3)
    monkeypatch.setattr(module, "STRIP_PIXELS", 30 * rows)
    assert len(list(module.strips(40, 30))) == -(-40 // rows)
    assert np.array_equal(divide(pixels, light_map, 1.3), whole)


@pytest.mark.parametrize("gamma", [0.5, 0.83])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gamma_is_a_power_of_the_clamped_result(gamma, dtype):
    pixels, light_map = noise(dtype), torch.rand(1, 1, 40, 30) * 1.5
    pixels[:3], light_map[..., :5] = 0, 0
    peak = np.iinfo(dtype).max
    power = light_map[0, 0, :, :, None].double().numpy() ** 0.7 + 1e-9
    exact = peak * (pixels / power / peak).clip(0, 1) ** gamma
    off = np.abs(divide(pixels, light_map, 0.7, gamma) - exact).max()
    assert off < (0.501 if dtype == np.uint8 else 0.6)
    assert not divide(pixels, light_map, 0.7, gamma)[:3].any()
    whole = divide(pixels, light_map, 0.7)
    assert np.array_equal(divide(pixels, light_map, 0.7, 1.0), whole)


@pytest.mark.parametrize(
    ("grey", "light_map", "strength", "expected"),
    [
        (50, 0.5, 1, 0.74),  # ln 0.5 / ln(100 / 255) = 0.7404
        (90, 0.6, 1, 1),  # 150 is light enough
        (90, 0.6, 0.5, 0.88),  # 90 / 0.6**0.5 = 116.2
        (64, 0.5, 1, 1),  # 128 is just enough
        (63, 0.5, 1, 0.98),  # 126 is not
        (200, 1.8, 1, 0.83),  # a light map above 1 darkens
        (10, 0.5, 1, 0.6),  # too dark at any
        (0, 0.5, 1, 1),  # nothing lightens black
        (250, 0.1, 1, 1),  # white is left so
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_auto_exposure_is_what_a_flat_photograph_needs(
    grey, light_map, strength, expected, channels, dtype
):
    scale = np.iinfo(dtype).max // 255
    pixels = np.full((40, 30, channels), grey * scale, dtype)
    assert choose_gamma(pixels, flat(light_map), strength) == expected


@pytest.mark.parametrize("seed", range(20))
def test_auto_exposure_is_what_trying_all_powers_finds(seed):
    rng = np.random.default_rng(seed)
    scale, pixels = rng.uniform(20, 255), np.zeros((40, 30, 3), np.uint8)
    pixels[:] = rng.uniform(0, scale, pixels.shape)
    light_map = torch.from_numpy(rng.uniform(0.1, 1.2, (1, 1, 40, 30))).float()
    strength = rng.choice([0, 0.6, 1])
    divided = (pixels / light_map[0, 0, :, :, None].numpy() ** strength / 255).clip(0, 1)
    means = {k: mean_luma(255 * divided ** (k / 100)) for k in range(60, 101)}
    enough = max((k for k, mean in means.items() if mean >= 0.5), default=60)
    assert choose_gamma(pixels, light_map, strength) == enough / 100


def test_auto_exposure_of_a_large_photograph_is_of_a_sample(monkeypatch):
    small = noise(np.uint8, size=(60, 80)) // 3
    light_map = torch.rand(1, 1, 60, 80) * 0.5 + 0.2
    exact = choose_gamma(small, light_map)
    assert 0.6 < exact < 1
    monkeypatch.setattr(module, "SAMPLE_PIXELS", 60 * 80 // 9)
    seen, luma = set(), module.luma
    monkeypatch.setattr(module, "luma", lambda x: seen.add(tuple(x.shape)) or luma(x))
    assert choose_gamma(small, light_map) == pytest.approx(exact, abs=0.05)
    assert seen == {(1, 3, 20, 27)}


def test_a_photograph_of_trained_weights_is_exposed_well():
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, find_weights(None), "enhancer weights")
    photo = skimage.data.astronaut()[:160, :200] // 5
    plain = enhance_photo(enhancer, photo)
    result = enhance_photo(enhancer, photo, auto_exposure=True)
    assert mean_luma(plain) < 0.49 < 0.5 <= mean_luma(result) + 0.001 <= 0.505
    light_map = photo_light_map(enhancer, photo)
    gamma = choose_gamma(photo, light_map)
    assert np.array_equal(divide(photo, light_map, 1.0, gamma), result)
    weaker = enhance_photo(enhancer, photo, strength=0.8, auto_exposure=True)
    gamma = choose_gamma(photo, light_map, 0.8)
    assert np.array_equal(divide(photo, light_map, 0.8, gamma), weaker)
