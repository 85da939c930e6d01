import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio

from models.enhancer import UNetEnhancer
from models.fast_light_map import fast_light_map, guided_coefficients, interpolate_rows
from models.strength import divide
from models.tiling import enhance_photo
from utils.checkpoint import find_weights, restore


def test_a_light_map_that_follows_the_luma_is_found_again():
    guide = torch.rand(1, 1, 40, 50)
    slope, offset = guided_coefficients(0.7 * guide + 0.2, guide)
    torch.testing.assert_close(slope * guide + offset, 0.7 * guide + 0.2, atol=1e-3, rtol=0)


@pytest.mark.parametrize("height", [10, 37, 64])
def test_rows_are_interpolated_as_torch_does(height):
    images = torch.rand(1, 2, 10, 6)
    whole = F.interpolate(images, (height, 6), mode="bilinear")
    for start in range(0, height, 7):
        rows = slice(start, min(start + 7, height))
        torch.testing.assert_close(interpolate_rows(images, rows, height), whole[:, :, rows])


@pytest.mark.filterwarnings("error")  # a NaN would be cast with one
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 3), (300, 20)])
def test_any_size_and_depth_and_black_stays_black_where_the_light_map_is_0(dtype, size):
    enhancer = UNetEnhancer("reflect").eval()
    torch.nn.init.constant_(enhancer.cond_add1.bias, -100)
    pixels = np.zeros((*size, 3), dtype)
    result = divide(pixels, fast_light_map(enhancer, pixels, 0.25))
    assert result.dtype == dtype and result.shape == pixels.shape and not result.any()


def test_the_result_is_near_the_exact_one():
    enhancer = UNetEnhancer("reflect").eval()
    restore(enhancer, find_weights(None), "enhancer weights")
    photo = skimage.data.astronaut()[:256, :256] // 3
    exact = enhance_photo(enhancer, photo)
    psnrs = [
        peak_signal_noise_ratio(exact, divide(photo, fast_light_map(enhancer, photo, scale)))
        for scale in (0.25, 0.5)
    ]
    assert psnrs[0] > 25
    assert psnrs[1] > psnrs[0]
