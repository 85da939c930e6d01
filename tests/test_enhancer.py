import resource

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.enhancer import (
    Conv3x3,
    ResidualBlock,
    UNetEnhancer,
    enhance,
    enhance_images,
    new_enhancer,
)
from utils.checkpoint import restore, save_weights
from utils.errors import UserError


def test_the_checkpoint_contract(tmp_path):
    enhancer = UNetEnhancer()
    assert sum(parameter.numel() for parameter in enhancer.parameters()) == 278_790
    save_weights(enhancer, tmp_path / "weights.pth")
    saved = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert len(saved) == 30 and all(key.startswith("module.") for key in saved)
    bare = {key.removeprefix("module."): value for key, value in saved.items()}
    torch.save(bare, tmp_path / "bare.pth")
    for name in ("weights.pth", "bare.pth"):
        other = UNetEnhancer()
        restore(other, tmp_path / name, "enhancer weights")
        pairs = zip(other.parameters(), enhancer.parameters(), strict=True)
        assert all(torch.equal(one, another) for one, another in pairs)


def test_released_checkpoints_load(shared):
    files = sorted((shared / "released").glob("*.pth"))
    assert len(files) == 8
    for file in files:
        restore(UNetEnhancer(), file, "enhancer weights")


def test_other_weights_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold enhancer weights"):
        restore(UNetEnhancer(), tmp_path / "other.pth", "enhancer weights")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value * float("nan"),
        lambda value: value * float("inf"),
        lambda value: value.int(),
        lambda value: value.to(torch.complex64),
        lambda value: value.to_sparse(),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, spoil):
    weights = {name: spoil(value) for name, value in UNetEnhancer().state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"no tensor of finite numbers|sparse, complex or other"):
        restore(UNetEnhancer(), tmp_path / "weights.pth", "enhancer weights")


def test_a_full_disk_keeps_the_file_before(tmp_path):
    enhancer = UNetEnhancer()
    save_weights(enhancer, tmp_path / "weights.pth")
    before = (tmp_path / "weights.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*weights\.pth"):
            save_weights(enhancer, tmp_path / "weights.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "weights.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_refused_whatever_its_damage(tmp_path, legacy):
    path = tmp_path / "weights.pth"
    torch.save(UNetEnhancer().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole[: rng.integers(len(whole))])
        for place in rng.integers(0, max(1, min(len(damaged), 4000)), 5):
            damaged[place : place + 1] = rng.bytes(1)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.pth"):
            restore(UNetEnhancer(), path, "enhancer weights")


def test_outer_convolutions_follow_the_switch_and_all_others_do_not():
    for mode in ("zeros", "reflect"):
        layers = dict(UNetEnhancer(mode).named_modules())
        modes = {n: m.padding_mode for n, m in layers.items() if isinstance(m, Conv3x3)}
        assert len(modes) == 17 and modes.pop("PPM1.fuse.0") == "zeros"
        assert {modes.pop(name) for name in ("cond1", "condx", "condy", "cond_add1")} == {mode}
        assert set(modes.values()) == {"reflect"}


@pytest.mark.parametrize(
    ("mode", "image", "expected"),
    [
        ("zeros", [[1, 2, 3], [4, 5, 6]], [[12, 21, 16], [12, 21, 16]]),
        ("reflect", [[1, 2, 3], [4, 5, 6]], [[33, 36, 39], [24, 27, 30]]),
        ("zeros", [[1, 2, 3]], [[3, 6, 5]]),
        ("reflect", [[1, 2, 3]], [[15, 18, 21]]),  # the row is repeated
        ("reflect", [[1], [2], [3]], [[15], [18], [21]]),
        ("reflect", [[2]], [[18]]),
    ],
)
def test_a_convolution_at_the_border(mode, image, expected):
    convolution = Conv3x3(1, 1, bias=False, padding_mode=mode)
    torch.nn.init.ones_(convolution.weight)
    with torch.no_grad():
        sums = convolution(torch.tensor([[image]], dtype=torch.float32))
    assert sums[0, 0].tolist() == expected


def identity_(convolution: torch.nn.Conv2d, scale: float = 1.0) -> None:
    """Let a convolution map channel i to channel i, times `scale`."""
    torch.nn.init.dirac_(convolution.weight).data.mul_(scale)
    if convolution.bias is not None:
        torch.nn.init.zeros_(convolution.bias)


def test_a_residual_block_of_known_weights():
    block = ResidualBlock(1)
    identity_(block.conv1)
    identity_(block.conv2, 2)
    h = torch.tensor([-10.0, 0.0, 10.0]).view(1, 1, 1, 3)
    # -10: conv1, lrelu -2, conv2 -4, plus h -14, lrelu -2.8
    assert block(h).flatten().tolist() == pytest.approx([-2.8, 0, 30])


@pytest.mark.parametrize("size", [(1, 8), (25, 40)], ids=str)
def test_a_light_map_of_known_weights(size):
    """Layers that pass red on, and a pyramid pooling that adds 1, 2, 3 and 4 times its maps."""
    enhancer = UNetEnhancer("reflect").double()
    for module in enhancer.modules():
        if isinstance(module, torch.nn.Conv2d):
            identity_(module)
    for index in range(6):
        identity_(getattr(enhancer, f"ResidualBlock{index + 1}").conv2, 0)
    for index in range(4):  # eight maps each, after the 32 features
        enhancer.PPM1.fuse[0].weight.data[0, 32 + 8 * index, 1, 1] = index + 1
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    red = x[:, :1]
    expected = red.clone()
    for factor, bins in enumerate((1, 2, 3, 6), start=1):
        coarse = F.adaptive_avg_pool2d(red, bins)
        expected += factor * F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(enhancer(x), expected)
    enhancer.cond_add1.weight.data.neg_()
    assert not enhancer(x).any()


@pytest.mark.parametrize(
    ("capability", "channels_last"), [("AVX2", False), ("AVX512", True), ("DEFAULT", True)]
)
def test_the_memory_format_of_training_follows_the_cpu(monkeypatch, capability, channels_last):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weight = new_enhancer().condx.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_both_memory_formats_train_alike():
    images = torch.rand(2, 3, 20, 14, generator=torch.Generator().manual_seed(0))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        enhancer = new_enhancer(1.0).to(memory_format=memory_format)
        loss = (enhance_images(enhancer, images) - 0.5).square().mean()
        gradients = torch.autograd.grad(loss, list(enhancer.parameters()))
        results.append(torch.cat([gradient.flatten() for gradient in gradients]))
    one, other = results
    assert (one - other).norm() < 1e-5 * other.norm()


def test_division_keeps_black_and_the_range():
    x = torch.tensor([0.0, 0.2, 0.9]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    for light_map in (torch.zeros(1, 1, 1, 3), torch.full((1, 1, 1, 3), 0.5)):
        y = enhance(x, light_map)
        assert y.isfinite().all() and y[..., 0].eq(0).all() and y.max() <= 1
    assert y[0, 0, 0].tolist() == pytest.approx([0, 0.4, 1.0])


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    enhancer = new_enhancer(1.0)
    enhance_images(enhancer, torch.rand(2, 3, 16, 16) * 0.5).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in enhancer.parameters())


def test_a_fresh_light_map_is_near_where_it_should_start():
    torch.manual_seed(0)
    with torch.no_grad():
        light_map = new_enhancer(1.0)(torch.rand(1, 3, 32, 32))
        near_zero = new_enhancer()(torch.rand(1, 3, 32, 32))
    assert 0.5 < light_map.mean() < 1.5
    assert near_zero.max() < 0.2
