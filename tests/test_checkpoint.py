import pytest
import safetensors.torch
import torch
from torch import nn

from utils import checkpoint
from utils.checkpoint import (
    cached_tensor,
    find_weights,
    fingerprint,
    fingerprint_file,
    load,
    load_weights,
    restore,
    save_state_dict,
    save_weights,
)
from utils.errors import UserError
from utils.files import cache_folder

TENSOR = torch.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rave"


def never():
    raise AssertionError("computed although cached")


def test_computes_once(folder):
    assert cache_folder() == folder
    assert torch.equal(cached_tensor("key", (2, 3), lambda: TENSOR), TENSOR)
    assert torch.equal(cached_tensor("key", (2, 3), never), TENSOR)
    assert torch.equal(cached_tensor("other", (2, 3), lambda: -TENSOR), -TENSOR)


def turn_a_bit(content):
    """Turn a bit of the first number, which stays finite."""
    numbers = TENSOR.numpy().tobytes()
    return content.replace(numbers, bytes([numbers[0] ^ 1]) + numbers[1:])


@pytest.mark.parametrize("mapped_from", [0, 2**26])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save(TENSOR[:1], path),
        lambda path: torch.save(TENSOR / 0, path),
        lambda path: torch.save({"not": "a tensor"}, path),
        lambda path: path.write_bytes(turn_a_bit(path.read_bytes())),
    ],
)
def test_damaged_file_is_computed_again(folder, damage, mapped_from, capsys, monkeypatch):
    monkeypatch.setattr("utils.checkpoint.MAPPED_FROM", mapped_from)
    cached_tensor("key", (2, 3), lambda: TENSOR)
    damage(folder / "key.pt")
    assert torch.equal(cached_tensor("key", (2, 3), lambda: TENSOR), TENSOR)
    assert "key.pt" in (said := capsys.readouterr().err) and "computing it again" in said
    assert torch.equal(cached_tensor("key", (2, 3), never), TENSOR)


def test_unwritable_cache_is_done_without(folder, capsys):
    folder.write_text("a file where the folder should be")
    assert torch.equal(cached_tensor("key", (2, 3), lambda: TENSOR), TENSOR)
    assert "not cached" in capsys.readouterr().err


def test_fingerprint_is_of_names_types_shapes_and_values():
    zeros = torch.zeros(2, 3, 4, 4)
    before = fingerprint({"w": zeros, "b": TENSOR})
    assert len(before) == 64
    channels_last = zeros.to(memory_format=torch.channels_last)
    assert fingerprint({"b": TENSOR, "w": channels_last}) == before
    tiny = channels_last.clone()
    tiny[0, 0, 0, 0] = 1e-30
    others = (zeros.reshape(2, 3, 16), zeros.int(), tiny)
    assert all(fingerprint({"w": other, "b": TENSOR}) != before for other in others)
    assert fingerprint({"v": zeros, "b": TENSOR}) != before


def test_fingerprint_of_a_file_is_that_of_its_contents(tmp_path):
    path = tmp_path / "weights.pth"
    for contents in ({"w": TENSOR}, {"module.w": TENSOR}):
        torch.save(contents, path)
        assert fingerprint_file(path) == fingerprint({"w": TENSOR})
    for odd in (TENSOR.to_sparse(), TENSOR.to("meta")):
        torch.save({"w": odd}, path)
        with pytest.raises(UserError, match="sparse, complex or other"):
            fingerprint_file(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer.*lfs pull",
        ),
        ("<!DOCTYPE html><title>404</title>", "an HTML page.*download it again"),
        ('{"message": "Not Found"}', "a JSON text.*download it again"),
    ],
)
def test_files_that_stand_in_for_weights_are_recognised(tmp_path, text, what):
    (tmp_path / "a.pth").write_text(text)
    with pytest.raises(UserError, match=rf"a\.pth is {what}"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("key", ["params", "params_ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_wrapped_state_dicts_load(tmp_path, key, prefix):
    path = tmp_path / "a.pth"
    torch.save({key: {f"{prefix}w": TENSOR}, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert list(load_weights(path)) == ["w"]
    assert torch.equal(load_weights(path)["w"], TENSOR)


def test_averaged_weights_are_preferred(tmp_path):
    torch.save({"params": {"w": -TENSOR}, "params_ema": {"w": TENSOR}}, tmp_path / "a.pth")
    assert torch.equal(load_weights(tmp_path / "a.pth")["w"], TENSOR)


def test_names_that_only_look_wrapped_stay(tmp_path):
    """A network may have a part, or a tensor, of such a name."""
    names = ["model", "params.w", "submodule.w", "w.module.b"]
    torch.save(dict.fromkeys(names, TENSOR), tmp_path / "a.pth")
    assert list(load_weights(tmp_path / "a.pth")) == names
    torch.save({"model": {"epoch": 3}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="is not a state dict"):
        load_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("suffix", "name"), [(".pth", "module.weight"), (".safetensors", "weight")]
)
def test_weights_come_back_from_either_format(tmp_path, suffix, name):
    path = tmp_path / f"a{suffix}"
    layer = nn.Conv2d(3, 2, 3, bias=False).to(memory_format=torch.channels_last)
    save_weights(layer, path)
    assert list(load(path)) == [name]
    other = nn.Conv2d(3, 2, 3, bias=False)
    restore(other, path, "a layer")
    assert torch.equal(other.weight, layer.weight)
    assert fingerprint_file(path) == fingerprint(layer.state_dict())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_safetensors_file_says_what_it_is_for(tmp_path):
    save_state_dict({"w": TENSOR}, tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    (tmp_path / "a.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_found_by_name_in_either_format(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    save_state_dict({"w": TENSOR}, tmp_path / f"mine{suffix}")
    for name in ("mine", f"mine{suffix}", tmp_path / f"mine{suffix}"):
        assert find_weights(name) == tmp_path / f"mine{suffix}"
    with pytest.raises(UserError, match=r"no checkpoint at yours.*\(mine\)"):
        find_weights("yours")


def test_weights_without_sums_are_loaded(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": TENSOR}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load(tmp_path / "a.pth")["w"], TENSOR)
