import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from models.pooling import Crop, ExactAveragePool, Span, upsample

SCALES = (1, 2, 3, 6)
SIZES = [(1, 1), (1, 40), (5, 3), (37, 53)]


def split(size, side):
    return [Span(start, min(start + side, size), size) for start in range(0, size, side)]


@pytest.mark.parametrize("bins", SCALES)
@pytest.mark.parametrize("size", [*SIZES, (900, 901)], ids=str)
def test_averages_are_those_of_adaptive_pooling(size, bins):
    torch.manual_seed(0)
    h = torch.rand(2, 4, *size)
    expected = adaptive_avg_pool2d(h.double(), bins).float()  # in fp32 it is off by 2e-5
    for same in (h, h.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(ExactAveragePool(bins)(same), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("bins", SCALES)
def test_the_shares_of_crops_add_up_to_the_averages(bins):
    h = torch.rand(1, 3, 50, 70, dtype=torch.float64)
    whole, pool = Crop.whole(50, 70), ExactAveragePool(bins)
    crops = [Crop(rows, columns) for rows in split(50, 20) for columns in split(70, 30)]
    shares = [pool(crop.cut(h, whole), crop) for crop in crops]
    torch.testing.assert_close(sum(shares), adaptive_avg_pool2d(h, bins))


@pytest.mark.parametrize("bins", SCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_crop_of_upsampled_maps(size, bins):
    maps = torch.rand(2, 4, bins, bins)
    expected = interpolate(maps.double(), size, mode="bilinear", align_corners=True).float()
    whole = Crop.whole(*size)
    for crop in (whole, Crop(Span(size[0] // 2, size[0], size[0]), split(size[1], 2)[0])):
        found = upsample(maps, crop)
        torch.testing.assert_close(found, crop.cut(expected, whole), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 9), (13, 17)], ids=str)
def test_gradients_are_those_of_torch(size):
    h = torch.rand(1, 2, *size, dtype=torch.float64).requires_grad_()
    ours = upsample(ExactAveragePool(3)(h), Crop.whole(*size))
    theirs = interpolate(adaptive_avg_pool2d(h, 3), size, mode="bilinear", align_corners=True)
    for found, expected in zip(
        *(torch.autograd.grad(y.square().sum(), h) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_autocast_takes_nothing_from_the_averages():
    h = torch.rand(1, 3, 60, 50).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        averages = ExactAveragePool(2)(h)
        maps = upsample(h[..., :6, :6], Crop.whole(60, 50))
    torch.testing.assert_close(averages, adaptive_avg_pool2d(h.float(), 2))
    assert maps.dtype == torch.bfloat16


def test_crops_do_not_expand_beyond_the_image():
    crop = Crop(Span(3, 10, 40), Span(30, 35, 36))
    assert crop.area == 35
    assert crop.expand(5) == Crop(Span(0, 15, 40), Span(25, 36, 36))
    image = torch.arange(40 * 36).view(1, 40, 36)
    outer = crop.expand(5)
    part = crop.cut(outer.cut(image, Crop.whole(40, 36)), outer)
    assert torch.equal(part, image[:, 3:10, 30:35])
