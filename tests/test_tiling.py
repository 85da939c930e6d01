import copy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from data.images import read_rgb
from data.listing import list_photos
from models.enhancer import UNetEnhancer
from models.pooling import Crop
from models.tiling import enhance_photo, light_map_tiled, split_into_tiles
from utils.checkpoint import find_weights, restore
from utils.metrics import fidelity


@pytest.fixture(scope="module", params=["zeros", "reflect"])
def enhancer(request) -> UNetEnhancer:
    torch.manual_seed(0)
    enhancer = UNetEnhancer(request.param).eval()
    for parameter in enhancer.parameters():
        parameter.data.mul_(3)
    torch.nn.init.ones_(enhancer.cond_add1.bias)  # a light map between 0 and 1.5
    return enhancer


SMALL = [(1, 1), (1, 20), (20, 1), (5, 3), (2, 30)]
LARGE = [(37, 53), (64, 64), (33, 80)]


@pytest.mark.parametrize(
    ("size", "tile"),
    [*product(SMALL, (1, 7, 64)), *product(LARGE, (16, 25, 64))],
    ids=str,
)
def test_tiled_equals_whole(enhancer, size, tile):
    torch.manual_seed(0)
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    exact = copy.deepcopy(enhancer).double()
    with torch.no_grad():
        whole = exact(image)
    tiled = light_map_tiled(exact, image, tile)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)


def test_trained_weights_give_the_same_in_tiles():
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, find_weights(None), "enhancer weights")
    image = torch.from_numpy(skimage.data.astronaut()[:150, :200] // 4).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        whole = enhancer(image)
    torch.testing.assert_close(light_map_tiled(enhancer, image, 70), whole, rtol=0, atol=3e-6)


@pytest.mark.parametrize("tile", [0, 1, 7, 16, 100])
@pytest.mark.parametrize("size", [*SMALL, *LARGE], ids=str)
def test_tiles_cover_each_pixel_once(size, tile):
    covered = torch.zeros(size)
    for crop in split_into_tiles(*size, tile):
        part = crop.cut(covered, Crop.whole(*size))
        part += 1
        assert not tile or max(part.shape) <= tile
    assert covered.eq(1).all()


@pytest.mark.parametrize("tile", [0, 12, 40])
def test_photographs_are_rounded_to_nearest_and_progress_adds_up(enhancer, tile):
    pixels = np.random.default_rng(0).integers(0, 200, (30, 41, 3), dtype=np.uint8)
    done = []
    found = enhance_photo(enhancer, pixels, tile=tile, progress=done.append)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = 255 * (x / enhancer(x)).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 0.501
    assert sum(done) == pytest.approx(30 * 41) and len(done) == {0: 1, 12: 24, 40: 4}[tile]


@pytest.mark.parametrize(
    ("checkpoint", "tile"), [("rave_unpaired", 150), ("clip_lit_paired", None)]
)
def test_released_results_are_met_whole_and_in_tiles(shared, checkpoint, tile):
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, shared / "released" / f"{checkpoint}.pth", "enhancer weights")
    backlit = read_rgb(photo(shared, "input", "111"))
    expected = read_rgb(shared / "expected" / checkpoint / "111.png")
    difference = np.abs(enhance_photo(enhancer, backlit, tile=tile).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4


def photo(shared, kind, name):
    return shared / "photos" / "lol_eval15" / kind / f"{name}.png"


@pytest.mark.long
def test_lol_figures_of_the_released_checkpoint(shared):
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, shared / "released" / "rave_unpaired.pth", "enhancer weights")
    enhancer = enhancer.to(memory_format=torch.channels_last)
    figures = [
        fidelity(
            read_rgb(photo(shared, "gt", path.stem)),
            enhance_photo(enhancer, read_rgb(path)),
            "standard",
        )
        for path in map(Path, list_photos(shared / "photos" / "lol_eval15" / "input"))
    ]
    assert len(figures) == 15
    assert np.mean([f["psnr"] for f in figures]) == pytest.approx(9.493, abs=0.005)
    assert np.mean([f["ssim"] for f in figures]) == pytest.approx(0.3686, abs=0.0005)


@pytest.mark.filterwarnings("error")  # a NaN would be cast with one
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_black_stays_black_where_the_light_map_is_0(dtype):
    enhancer = UNetEnhancer("reflect").eval()
    torch.nn.init.constant_(enhancer.cond_add1.bias, -100)
    pixels = np.zeros((9, 30, 3), dtype)
    pixels[:, 20:] = 7
    enhanced = enhance_photo(enhancer, pixels, tile=16)
    assert enhanced.dtype == dtype
    assert not enhanced[:, :20].any() and (enhanced[:, 20:] == np.iinfo(dtype).max).all()


def test_weights_that_are_too_large_are_told():
    enhancer = UNetEnhancer("reflect").eval()
    for parameter in enhancer.parameters():
        parameter.data.fill_(1e38)
    with pytest.raises(FloatingPointError, match="finite"):
        enhance_photo(enhancer, np.ones((9, 9, 3), np.uint8))
