import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from models.pooling import BinSums

SCALES = (1, 2, 3, 6)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 3), (37, 53), (900, 901)], ids=str)
def test_averages_are_those_of_adaptive_pooling(size):
    h = torch.rand(2, 4, *size)
    bins = BinSums(*size, SCALES, h.device)
    for averages, count in zip(bins.averages(bins.of(h)), SCALES, strict=True):
        expected = adaptive_avg_pool2d(h.double(), count).float()
        torch.testing.assert_close(averages, expected, rtol=1e-6, atol=0)


def test_parts_add_up_to_the_whole():
    h = torch.rand(1, 3, 50, 70)
    bins = BinSums(50, 70, SCALES, h.device)
    parts = [
        bins.of(h[:, :, top : top + 20, left : left + 30], top, left)
        for top in range(0, 50, 20)
        for left in range(0, 70, 30)
    ]
    torch.testing.assert_close(sum(parts), bins.of(h), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_adaptive_pooling():
    h = torch.rand(1, 2, 13, 17, dtype=torch.float64).requires_grad_()
    bins = BinSums(13, 17, SCALES, h.device)
    found = torch.autograd.grad(sum(a.square().sum() for a in bins.averages(bins.of(h))), h)
    pooled = [adaptive_avg_pool2d(h, count) for count in SCALES]
    expected = torch.autograd.grad(sum(a.square().sum() for a in pooled), h)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
