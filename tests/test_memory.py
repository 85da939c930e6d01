import platform
from pathlib import Path

import psutil
import pytest
import torch

from utils import memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Gives the free memory of a machine with 8 GiB, within control groups, the outer one first."""

    def free(*limits):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: Namespace(available=8 * GIB))
        monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
        folder = tmp_path
        for number, (limit, used) in enumerate(limits):
            folder = folder / f"group{number}"
            folder.mkdir()
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{used}\n")
        own = "/" + folder.relative_to(tmp_path).as_posix()
        real = Path.read_text

        def told(path):
            return f"0::{own}\n" if str(path) == "/proc/self/cgroup" else real(path)

        monkeypatch.setattr(Path, "read_text", told)
        return memory.free_memory()

    return free


class Namespace:
    def __init__(self, **values):
        vars(self).update(values)


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ((), 8),
        ((("max", 0),), 8),
        (((4 * GIB, 1 * GIB),), 3),
        (((4 * GIB, 1 * GIB), ("max", 1 * GIB)), 3),  # a job within a limited container
        ((("max", 0), (2 * GIB, 3 * GIB)), 0),
    ],
)
def test_free_memory_is_the_least_of_machine_and_groups(machine, limits, free):
    assert machine(*limits) == free * GIB


def test_peak_memory_grows_with_what_is_touched():
    before = memory.peak_memory(torch.device("cpu"))
    assert 10 * 2**20 < before < psutil.virtual_memory().total
    peak = psutil.Process().memory_info().rss
    size = max(0, before - peak) + 2**28
    torch.ones(size, dtype=torch.uint8)
    grown = memory.peak_memory(torch.device("cpu")) - before
    assert 2**26 < grown < 2**30


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems have no such setting")
def test_memory_settings_are_accepted():
    memory.keep_freed_memory()
    memory.release_freed_memory()
