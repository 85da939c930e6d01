import pytest
import torch

from models.enhancer import UNetEnhancer
from models.tiling import light_map_tiled


@pytest.fixture(scope="module", params=["zeros", "reflect"])
def enhancer(request) -> UNetEnhancer:
    torch.manual_seed(0)
    enhancer = UNetEnhancer(request.param).eval()
    for parameter in enhancer.parameters():
        parameter.data.mul_(3)  # away from a light map of almost 0
    return enhancer


SIZES = [(1, 1), (1, 40), (40, 1), (5, 3), (2, 70), (37, 53), (64, 64), (90, 31), (33, 97)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tile", [1, 7, 16, 25, 64])
def test_tiled_equals_whole(enhancer, size, tile):
    if size[0] * size[1] > 1500 and tile < 16:
        pytest.skip("slow")
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        whole = enhancer(image)
    tiled = light_map_tiled(enhancer, image, tile)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5 * whole.max().item())
