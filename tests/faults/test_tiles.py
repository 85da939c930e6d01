"""Whatever a photograph's size, kind and tiles: the result is that of the whole, and is kept."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import inference
from data.images import WRITTEN_SUFFIXES, Photo, read_photo, to_8_bits, write_photo
from data.result_names import choose_suffix
from models.enhancer import LEAKY_SLOPE, UNetEnhancer, enhance
from models.tiling import light_map_tiled

CPU = torch.device("cpu")
NEAR = 1e-5  # light maps of tiles and of the whole image; rounding makes a quarter of it
SIXTEEN_BIT = (".png", ".tif", ".tiff")
LOSSLESS = (*SIXTEEN_BIT, ".bmp")
LOSSY = 5  # mean error in levels of 8 bits that JPEG and WebP may add to noise
TILES = 4  # on an axis at most: small ones are mostly halo, and slow


@pytest.fixture(scope="module")
def enhancer() -> UNetEnhancer:
    """Random weights whose light maps are about 0.7, and in which a pixel of halo is 1e-4."""
    torch.manual_seed(0)
    enhancer = UNetEnhancer("reflect").eval()
    for module in enhancer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
    last = enhancer.cond_add1
    with torch.no_grad():
        last.bias.fill_(100)  # above what the light map's ReLU cuts off
        light_map = enhancer(torch.rand(1, 3, 64, 64))
        scale = 0.1 / light_map.std()
        last.weight.mul_(scale)
        last.bias.copy_(0.7 + scale * (100 - light_map.mean()))
    return enhancer


@st.composite
def cases(draw: st.DrawFn, longest: int, area: int) -> dict:
    """A photograph of up to so many pixels a side and in all, and tiles that split it or not."""
    side = draw(st.integers(1, longest))
    sides = side, draw(st.integers(1, min(longest, area // side)))
    height, width = sides if draw(st.booleans()) else reversed(sides)
    return {
        "height": height,
        "width": width,
        "tile": draw(st.integers(-(-max(sides) // TILES), max(sides) + 1)),
        "channels": draw(st.sampled_from([1, 3])),
        "alpha": draw(st.booleans()),
        "dtype": draw(st.sampled_from([np.uint8, np.uint16])),
        "suffix": draw(st.sampled_from(sorted(WRITTEN_SUFFIXES))),
        "brightest": draw(st.sampled_from([1.0, 0.3, 0.01, 0.0])),
        "seed": draw(st.integers(0, 2**16)),
    }


def noise(case: dict) -> Photo:
    """Light and dark pixels whose hues differ little: WebP keeps half of those."""
    rng, shape = np.random.default_rng(case["seed"]), (case["height"], case["width"])
    largest = np.iinfo(case["dtype"]).max
    light = rng.random((*shape, 1)) * rng.uniform(0.9, 1, (*shape, case["channels"]))
    pixels = np.rint(light * case["brightest"] * largest).astype(case["dtype"])
    alpha = rng.integers(0, largest + 1, shape).astype(case["dtype"]) if case["alpha"] else None
    return Photo(pixels, alpha)


def check_tiles(case: dict, enhancer: UNetEnhancer, folder: Path) -> None:
    """Enhance the photograph of a case in tiles, from file to file, and as a whole."""
    drawn = noise(case)
    write_photo(drawn, folder / "a.png")
    photo = read_photo(folder / "a.png")
    check_kept(drawn, photo, ".png")
    plain = dict(light_map_scale=1.0, amp=False, strength=1.0, auto_exposure=False)
    args = argparse.Namespace(tile=case["tile"], **plain)
    done = []
    result = inference.enhance(enhancer, photo, CPU, args, done.append)
    suffix, _ = choose_suffix(Path(f"b{case['suffix']}"), "same", photo.alpha is not None)
    write_photo(result, folder / f"b{suffix}")
    check_enhanced(photo, result, enhancer, case["tile"])
    check_kept(result, read_photo(folder / f"b{suffix}"), suffix)
    assert sum(done) == pytest.approx(case["height"] * case["width"])


def check_enhanced(photo: Photo, result: Photo, enhancer: UNetEnhancer, tile: int) -> None:
    """Compare a result with the network's for the whole image."""
    peak, shape = np.iinfo(photo.pixels.dtype).max, photo.pixels.shape
    x = torch.from_numpy(photo.pixels.astype(np.float32) / peak)
    x = x.permute(2, 0, 1)[None].expand(-1, 3, -1, -1)  # (1, 3, H, W)
    with torch.no_grad():
        whole = enhancer(x)
        exact = peak * enhance(x, whole)[0].permute(1, 2, 0).numpy()
    tiled = light_map_tiled(enhancer, x, tile)
    assert tiled.isfinite().all() and (tiled >= 0).all()
    assert (tiled - whole).abs().max() <= NEAR
    assert result.pixels.shape == shape and result.pixels.dtype == photo.pixels.dtype
    assert not result.pixels[photo.pixels == 0].any()
    # So far can an error of NEAR move x / light_map: two results are equal unless near a tie, and
    # never more than a level of 8 bits apart.
    near = peak * NEAR / whole[0, 0, :, :, None].numpy()
    assert (np.abs(result.pixels - exact[..., : shape[2]]) <= 0.5 + near).all()


def check_kept(result: Photo, again: Photo, suffix: str) -> None:
    """Compare what was written with what is read back."""
    if suffix not in SIXTEEN_BIT:
        alpha = None if result.alpha is None else to_8_bits(result.alpha)
        result = Photo(to_8_bits(result.pixels), alpha)
    assert again.pixels.dtype == result.pixels.dtype
    assert again.pixels.shape[:2] == result.pixels.shape[:2]
    assert again.pixels.shape[2] in (result.pixels.shape[2], 3)
    far = np.abs(again.pixels - result.pixels.astype(float))  # grey may have become RGB
    assert far.max() == 0 if suffix in LOSSLESS else far.mean() <= LOSSY
    assert (again.alpha is None) == (result.alpha is None)
    assert result.alpha is None or np.array_equal(again.alpha, result.alpha)


@pytest.mark.parametrize(
    ("longest", "area", "quick", "whole"),
    [(150, 150**2, 20, 400), (700, 400**2, 1, 40)],
    ids=["small", "large"],
)
def test_tiles_give_what_the_whole_gives(
    longest, area, quick, whole, enhancer, tmp_path, fault, count
) -> None:
    @settings(
        max_examples=count(quick, whole),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(longest, area))
    def holds(case: dict) -> None:
        with fault("tiles against the whole photograph").case(f"{case}"):
            check_tiles(case, enhancer, tmp_path)

    holds()
