from itertools import product

import numpy as np
import pytest
import torch

from data.images import list_photos, read_rgb
from models.enhancer import UNetEnhancer
from models.tiling import enhance_photo, light_map_tiled
from utils.checkpoint import restore
from utils.metrics import fidelity


@pytest.fixture(scope="module", params=["zeros", "reflect"])
def enhancer(request) -> UNetEnhancer:
    torch.manual_seed(0)
    enhancer = UNetEnhancer(request.param).eval()
    for parameter in enhancer.parameters():
        parameter.data.mul_(3)
    torch.nn.init.ones_(enhancer.cond_add1.bias)  # a light map between 0 and 1.5
    return enhancer


SMALL = [(1, 1), (1, 40), (40, 1), (5, 3), (2, 70)]
LARGE = [(37, 53), (64, 64), (90, 31), (33, 97)]


@pytest.mark.parametrize(
    ("size", "tile"),
    [*product(SMALL, (1, 7, 16, 25, 64)), *product(LARGE, (16, 25, 64))],
    ids=str,
)
def test_tiled_equals_whole(enhancer, size, tile):
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        whole = enhancer(image)
    tiled = light_map_tiled(enhancer, image, tile)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpoint", ["rave_unpaired", "clip_lit_paired"])
@pytest.mark.parametrize("tile", [None, 0, 150])
def test_released_results_are_met_in_any_tiles(shared, checkpoint, tile):
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, shared / "released" / f"{checkpoint}.pth", "enhancer weights")
    enhanced = enhance_photo(enhancer, read_rgb(photo(shared, "input", "111")), tile=tile)
    expected = read_rgb(shared / "expected" / checkpoint / "111.png")
    difference = np.abs(enhanced.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4


def photo(shared, kind, name):
    return shared / "photos" / "lol_eval15" / kind / f"{name}.png"


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
        for path in list_photos(shared / "photos" / "lol_eval15" / "input")
    ]
    assert len(figures) == 15
    assert np.mean([f["psnr"] for f in figures]) == pytest.approx(9.493, abs=0.005)
    assert np.mean([f["ssim"] for f in figures]) == pytest.approx(0.3686, abs=0.0005)


def test_a_large_image_is_pooled_exactly(shared):
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, shared / "released" / "rave_unpaired.pth", "enhancer weights")
    image = torch.rand(1, 3, 450, 900)
    with torch.no_grad():
        whole = enhancer(image)
    torch.testing.assert_close(light_map_tiled(enhancer, image), whole, rtol=0, atol=2e-6)


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
