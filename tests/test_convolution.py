import pytest
import torch
import torch.nn.functional as F

from models import convolution
from models.convolution import convolve
from models.enhancer import enhance_images, new_enhancer

TOLERANCE = 1e-5


@pytest.fixture(params=[False, True], ids=["as the rule says", "in NCHW"])
def in_nchw(request, monkeypatch):
    """Compute as on an AVX2 machine, too."""
    if request.param:
        monkeypatch.setattr(convolution, "WEIGHT_GRADIENT_IN_NCHW", True)


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("channels", [(3, 8), (16, 16), (8, 1)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.usefixtures("in_nchw")
def test_values_and_gradients_are_those_of_float64(bias, padding, channels, batch):
    torch.manual_seed(0)
    inputs, outputs = channels
    x = torch.randn(batch, inputs, 21, 34).contiguous(memory_format=torch.channels_last)
    arguments = [x, torch.randn(outputs, inputs, 3, 3)]
    arguments += [torch.randn(outputs)] if bias else []
    results = []
    for dtype, function in ((torch.float32, convolve), (torch.float64, F.conv2d)):
        leaves = [argument.to(dtype).requires_grad_() for argument in arguments]
        out = function(*leaves, padding=padding)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for value, expected in zip(*results, strict=True):
        assert relative_error(value, expected) < TOLERANCE
    assert results[0][0].is_contiguous(memory_format=torch.channels_last) or outputs == 1


def test_both_ways_train_the_enhancer_alike(monkeypatch):
    torch.manual_seed(0)
    enhancer = new_enhancer(start_light_map=1.0)
    images = torch.rand(2, 3, 40, 28)
    results = []
    for in_nchw in (False, True):
        monkeypatch.setattr(convolution, "WEIGHT_GRADIENT_IN_NCHW", in_nchw)
        loss = (enhance_images(enhancer, images) - 0.5).square().mean()
        results.append(torch.autograd.grad(loss, list(enhancer.parameters())))
    for value, expected in zip(*results, strict=True):
        assert relative_error(value, expected) < TOLERANCE


def test_the_way_in_nchw_is_for_weight_gradients_alone(monkeypatch):
    monkeypatch.setattr(convolution, "WEIGHT_GRADIENT_IN_NCHW", True)
    x, weight = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(4, 4, 3, 3)
    assert convolve(x, weight).grad_fn.name() == "ConvolutionBackward0"
    weight.requires_grad_()
    assert convolve(x, weight).grad_fn.name() == "_ConvolutionBackward"
    with torch.no_grad():
        assert convolve(x, weight).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x, weight).dtype == torch.bfloat16


def test_a_copy_in_nchw_is_the_same_image():
    images = torch.randn(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    copy = convolution._to_nchw(images)
    assert torch.equal(copy, images)
    assert copy.is_contiguous()
