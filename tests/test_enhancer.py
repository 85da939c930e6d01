import resource

import numpy as np
import pytest
import torch

from models.enhancer import UNetEnhancer, enhance, enhance_images, new_enhancer
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
    with pytest.raises(UserError, match="no tensor of finite numbers"):
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


def test_padding_modes_differ_at_the_border_of_the_same_weights():
    torch.manual_seed(0)
    zeros = new_enhancer(1.0)
    reflect = UNetEnhancer("reflect")
    reflect.load_state_dict(zeros.state_dict())
    x = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        difference = (zeros(x) - reflect(x)).abs()
    assert difference[..., 0, :].max() > 1e-4


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
