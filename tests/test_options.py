"""What a device can do, and what the help says of defaults."""

import platform

import pytest
import torch

from utils.options import ArgumentParser, has_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(instructions, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert has_bf16(CPU) is expected


@pytest.mark.parametrize("expected", [False, True])
def test_an_older_torch_is_asked_by_other_names(expected, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: expected, raising=False)
    assert has_bf16(CPU) is expected
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: expected)
    assert has_bf16(CPU) is expected


def test_of_the_other_devices_cuda_has_them():
    assert has_bf16(torch.device("cuda", 1)) and not has_bf16(torch.device("mps"))


def test_the_help_ends_with_defaults_that_say_something():
    parser = ArgumentParser(prog="script.py")
    for name, default in {"none": None, "off": False, "empty": "", "list": [], "side": 96}.items():
        parser.add_argument(f"--{name}", default=default, help=f"as {name}")
    parser.add_argument("--worded", default=1, help="in words (default: all)")
    said = " ".join(parser.format_help().split())
    assert "as none --off OFF as off --empty EMPTY as empty --list LIST as list --side" in said
    assert said.endswith("as side (default: 96) --worded WORDED in words (default: all)")
