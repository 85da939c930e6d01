"""Dividing by the light map, more or less strongly, against closed forms."""

import numpy as np
import pytest
import skimage.data
import torch

from models import strength as module
from models.enhancer import UNetEnhancer, enhance
from models.strength import choose_strength, divide
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


@pytest.mark.parametrize(
    ("grey", "light_map", "expected"),
    [
        (50, 0.5, 1.2),  # 50 * 2**1.20 = 114.9, from 114.75 on
        (90, 0.6, 0.68),  # 90 / 0.6**0.68 = 127.4, up to 127.5
        (60, 0.5, 1.0),  # 120 is well exposed already
        (200, 1.5, 1.12),  # 200 / 1.5**1.12 = 127.0: a light map above 1 darkens
        (1, 0.5, 1.6),  # too dark at any
        (200, 0.5, 0.5),  # white at any
        (110, 0.5, 0.5),  # too light at any but those that would leave it nearly as it is
        (250, 1.01, 1.6),  # too light at any, and darkened a little
        (0, 0.5, 0.5),  # the same at any: the end nearer to 1
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_auto_is_what_a_flat_photograph_needs(grey, light_map, expected, channels, dtype):
    scale = np.iinfo(dtype).max // 255
    pixels = np.full((40, 30, channels), grey * scale, dtype)
    assert choose_strength(pixels, flat(light_map)) == expected


def test_auto_stays_nearest_to_1_where_brightness_falls_and_rises():
    pixels, light_map = np.full((40, 30, 1), 250, np.uint8), flat(2)
    pixels[20:], light_map[:, :, 20:] = 10, 0.05
    means = [np.mean([250 / 2**s, min(10 / 0.05**s, 255)]) / 255 for s in np.arange(161) / 100]
    well = [k for k, mean in enumerate(means) if 0.45 <= mean <= 0.5]
    assert max(np.diff(well)) > 10 and max(well) < 100  # two stretches below 1
    assert choose_strength(pixels, light_map) == max(well) / 100


@pytest.mark.parametrize("seed", range(20))
def test_auto_is_what_trying_all_strengths_finds(seed):
    rng = np.random.default_rng(seed)
    scale, pixels = rng.uniform(20, 255), np.zeros((40, 30, 3), np.uint8)
    pixels[:] = rng.uniform(0, scale, pixels.shape)
    light_map = torch.from_numpy(rng.uniform(0.1, 1.2, (1, 1, 40, 30))).float()
    power = light_map[0, 0, :, :, None].numpy()
    means = [mean_luma((pixels / power ** (k / 100)).clip(0, 255)) for k in range(161)]
    well = [k for k, mean in enumerate(means) if k >= 50 and 0.45 <= mean <= 0.5]
    ends = sorted((50, 160), key=lambda k: abs(means[k] - 0.475))
    nearest = min(well, key=lambda k: abs(k - 100)) if well else ends[0]
    assert choose_strength(pixels, light_map) == nearest / 100


def test_auto_of_a_large_photograph_is_of_a_sample(monkeypatch):
    small = noise(np.uint8, size=(60, 80)) // 4
    light_map = torch.rand(1, 1, 60, 80) * 0.5 + 0.2
    exact = choose_strength(small, light_map)
    monkeypatch.setattr(module, "SAMPLE_PIXELS", 60 * 80 // 9)
    seen, mean = [], module.mean_luma
    monkeypatch.setattr(module, "mean_luma", lambda x, *how: seen.append(x.shape) or mean(x, *how))
    assert choose_strength(small, light_map) == pytest.approx(exact, abs=0.1)
    assert set(seen) == {(1, 3, 20, 27)}


def test_a_photograph_of_trained_weights_is_exposed_well():
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, find_weights(None), "enhancer weights")
    photo = skimage.data.astronaut()[:160, :200] // 6
    result = enhance_photo(enhancer, photo, strength="auto")
    assert not 0.45 <= mean_luma(enhance_photo(enhancer, photo)) <= 0.5
    assert 0.449 <= mean_luma(result) <= 0.501
    taken = choose_strength(photo, photo_light_map(enhancer, photo))
    assert np.array_equal(enhance_photo(enhancer, photo, strength=taken), result)
