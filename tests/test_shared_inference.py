"""Several processes that enhance one folder, as torchrun starts them."""

import os
import re
import signal
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import inference
from models.enhancer import new_enhancer
from utils import distributed
from utils.checkpoint import save_weights
from utils.distributed import VARIABLES
from utils.errors import WorkError

PHOTOS = 12


@pytest.fixture
def arguments(tmp_path):
    """Gives the arguments of a run over some photographs of different sizes, by its output."""
    torch.manual_seed(0)
    save_weights(new_enhancer(0.5), tmp_path / "weights.pth")
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for k in range(PHOTOS):
        pixels = rng.integers(0, 100, (12 + 5 * k % 23, 16 + k, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{k}.png")

    def of(output, *more):
        common = ["-i", tmp_path / "in", "-o", tmp_path / output, "-c", tmp_path / "weights.pth"]
        return [str(word) for word in (*common, "--device", "cpu", *more)]

    return of


def contents(folder):
    """A folder's files by name, and what is in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture
def alone(forks, arguments, tmp_path):
    """What one process makes of the photographs."""
    status, said = forks.run("inference", arguments("alone"))
    assert status == 0, said
    return contents(tmp_path / "alone")


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_make_what_one_does(ranks, forks, arguments, alone, tmp_path):
    started = forks.start_ranks(ranks, "inference", arguments("out"))
    assert [forks.wait(pid) for pid, _ in started] == [0] * ranks
    said = "".join(file.read_text() for _, file in started)
    assert said.count("enhanced") == 1 and f"{PHOTOS} enhanced, 0 skipped, 0 failed\n" in said
    assert said.count("photos |") == started[0][1].read_text().count("photos |") > 0
    assert contents(tmp_path / "out") == alone and len(alone) == PHOTOS


def test_a_damaged_photograph_is_named_once(forks, arguments, alone, tmp_path):
    whole = (tmp_path / "in" / "7.png").read_bytes()
    (tmp_path / "in" / "7.png").write_bytes(whole[: len(whole) // 2])
    statuses, said = forks.run_ranks(2, "inference", arguments("out"))
    assert statuses == [1, 1]
    assert said.count("7.png") == 1
    assert f"{PHOTOS - 1} enhanced, 0 skipped, 1 failed\n" in said
    assert said.count("failed\n") == 1


def test_a_wrong_folder_is_refused_once(forks, arguments):
    statuses, said = forks.run_ranks(2, "inference", [*arguments("out"), "-i", "nowhere"])
    assert statuses == [2, 2]
    assert said == "error: no file or folder at nowhere; check the path\n"


@pytest.mark.parametrize("killed", [0, 2])
def test_a_process_that_dies_loses_only_its_own(killed, forks, arguments, alone, tmp_path):
    fault = {killed: dict(fault="kill before renaming", n=2)}
    started = forks.start_ranks(3, "inference", arguments("out"), fault)
    statuses = [forks.wait(pid) for pid, _ in started]
    assert statuses == [-signal.SIGKILL if rank == killed else 1 for rank in range(3)]
    results = {name: data for name, data in contents(tmp_path / "out").items() if name[0] != "."}
    assert results.items() <= alone.items()
    known = 0
    for rank, (_, file) in enumerate(started):
        said = file.read_text()
        assert "Traceback" not in said
        told = re.findall(rf"(\d+) enhanced, 0 skipped, 0 failed by rank {rank} alone", said)
        assert len(told) == (rank != killed), said
        known += sum(map(int, told))
    assert len(results) == known + 1  # the killed one's first
    said = "".join(file.read_text() for _, file in started)
    assert "error: another process of this run has ended" in said
    assert "--skip_existing goes on from here" in said

    statuses, said = forks.run_ranks(2, "inference", arguments("out", "--skip_existing"))
    assert statuses == [0, 0]
    assert f"{PHOTOS - len(results)} enhanced, {len(results)} skipped, 0 failed\n" in said
    assert contents(tmp_path / "out") == alone


def test_a_signal_ends_all_with_one_summary(forks, arguments, alone, tmp_path):
    for k in range(PHOTOS, 200):  # too many to be done before it comes
        (tmp_path / "in" / f"{k}.png").symlink_to("0.png")
    started = forks.start_ranks(2, "inference", arguments("out"))
    wait_for(tmp_path / "out" / "5.png")
    for pid, _ in started:
        os.kill(pid, signal.SIGTERM)
    assert [forks.wait(pid) for pid, _ in started] == [143, 143]
    said = "".join(file.read_text() for _, file in started)
    done = contents(tmp_path / "out")
    assert said.count("enhanced") == 1 and f"{len(done)} enhanced, 0 skipped, 0 failed\n" in said
    assert said.count("interrupted; --skip_existing goes on from here") == 1
    assert 1 < len(done) < 200
    assert all(done.get(name, data) == data for name, data in alone.items())


def test_a_signal_to_one_ends_that_one(forks, arguments, tmp_path):
    for k in range(PHOTOS, 200):
        (tmp_path / "in" / f"{k}.png").symlink_to("0.png")
    started = forks.start_ranks(2, "inference", arguments("out"))
    wait_for(tmp_path / "out" / "5.png")
    os.kill(started[1][0], signal.SIGTERM)
    assert [forks.wait(pid) for pid, _ in started] == [143, 143]
    said = "".join(file.read_text() for _, file in started)
    done = len(contents(tmp_path / "out"))
    assert f"{done} enhanced, 0 skipped, 0 failed\n" in said and PHOTOS < done < 200
    assert said.count("interrupted; --skip_existing goes on from here") == 1


def test_a_process_waits_for_the_others_however_long_they_take(arguments, monkeypatch):
    def recorded(*_, **how):
        raise WorkError(f"would wait for {how['timeout'].days} days")

    for name in VARIABLES:
        monkeypatch.setenv(name, "0" if "RANK" in name else "2")
    monkeypatch.setattr(distributed, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", recorded)
    monkeypatch.setattr(distributed, "_store", [])
    monkeypatch.setattr(sys, "argv", ["inference.py", *arguments("out")])
    with pytest.raises(WorkError, match="would wait for 365 days"):
        inference.main(inference.parse_arguments())
