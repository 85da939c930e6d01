"""Scoring that several processes share: the same files and table, and no process left."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from data.pairs import Pair
from evaluation import setup, sharing
from evaluation.networks import LoadedNetwork
from evaluation.scoring import LeftOut, Scorer, Scores
from tests.forks import group_ends
from utils import distributed
from utils.checkpoint import save
from utils.errors import UserError
from utils.signals import Interrupted

OUTPUTS = {"--csv": "s.csv", "--json": "s.json", "--report": "s.html"}
ONCE = "another process of this run has ended"
SLOW = {"pause": ("evaluation.scoring.Scorer.score", 60)}  # the first pair takes a minute


@pytest.fixture
def photos(tmp_path):
    """Gives the options that name folders of so many pairs of several sizes, and of inputs."""

    def make(count):
        rng = np.random.default_rng(count)
        for folder in ("gt", "out", "in"):
            (tmp_path / folder).mkdir()
        for number in range(count):
            width, height = rng.integers(33, 65, 2)
            photo = rng.integers(0, 250, (height, width, 3), dtype=np.uint8)
            for folder, level in (("gt", 0), ("out", 5), ("in", 2)):
                Image.fromarray(photo + level).save(tmp_path / folder / f"{number}.png")
        folders = {"gt_images_path": "gt", "enhanced_images_path": "out"}
        return [word for k, v in folders.items() for word in (f"--{k}", str(tmp_path / v))]

    return make


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory):
    """A SqueezeNet of random weights, for LPIPS."""
    path = tmp_path_factory.mktemp("weights") / "squeeze.pth"
    torch.manual_seed(0)
    save(models.squeezenet1_1().state_dict(), path)
    return path


@pytest.fixture
def metrics(squeeze, random_weights):
    """Gives the options of all metrics, of all for single images, or of what needs no network."""
    inception = next((random_weights / "hub" / "checkpoints").glob("pt_inception*"))
    plain = ["--metrics", "psnr", "ssim"]
    single = [*plain, "lpips", "--lpips_net", "squeeze", "--lpips_weights", str(squeeze)]
    all_of_them = [*single[:4], "fid", *single[4:], "--fid_weights", str(inception)]
    standard = ["--protocol", "standard"]
    return {"all": all_of_them + standard, "single": single + standard, "plain": plain}


@pytest.mark.parametrize(
    ("ranks", "count", "kind"), [(2, 7, "all"), (3, 7, "single"), (3, 2, "plain")]
)
def test_several_processes_write_and_print_what_one_does(
    ranks, count, kind, forks, photos, metrics, tmp_path
):
    arguments = [*photos(count), *metrics[kind], "--device", "cpu"]
    arguments += ["--input_images_path", str(tmp_path / "in")]
    arguments += [word for k, v in OUTPUTS.items() for word in (k, str(tmp_path / v))]
    if count > 2:
        (tmp_path / "out" / "1.png").write_bytes(b"no image")
        (tmp_path / "in" / "2.png").write_bytes(b"no image")
        (tmp_path / "gt" / "3.png").unlink()
    files = [tmp_path / name for name in OUTPUTS.values()]
    status, alone = forks.run("compute_metrics", arguments)
    expected = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    started = forks.start_ranks(ranks, "compute_metrics", arguments)
    statuses = [forks.wait(pid) for pid, _ in started]
    assert statuses == [status] * ranks and status == (count > 2)
    said = "".join(file.read_text() for _, file in started)
    assert said == alone and ("FID of" in said) == (kind == "all")
    assert [file.read_bytes() for file in files] == expected
    if not status:  # every pair is scored once
        calls = [json.loads(Path(f"{file}.calls").read_text()) for _, file in started]
        assert [each.get("kill in scoring", 0) for each in calls] == [1, 1, 0]
    assert expected[2].count(b'data-version="input" src=') == (count - 3 if count > 2 else count)


@pytest.mark.parametrize("gt", [True, False])
def test_niqe_is_shared_too(gt, forks, tmp_path, niqe_parameters):
    rng = np.random.default_rng(0)
    for folder in ("gt", "out", "in"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            photo = rng.integers(0, 256, (96, 192 + 96 * (number > 0), 3), dtype=np.uint8)
            Image.fromarray(photo).save(tmp_path / folder / f"{number}.png")
    names = {"enhanced_images_path": "out", "input_images_path": "in"}
    names |= {"gt_images_path": "gt"} if gt else {}
    arguments = [word for k, v in names.items() for word in (f"--{k}", str(tmp_path / v))]
    arguments += ["--metrics", "niqe", *(["psnr", "--protocol", "gt_mean"] if gt else [])]
    arguments += ["--niqe_parameters", str(niqe_parameters), "--device", "cpu"]
    arguments += [word for k, v in OUTPUTS.items() for word in (k, str(tmp_path / v))]
    files = [tmp_path / name for name in OUTPUTS.values()]
    status, alone = forks.run("compute_metrics", arguments)
    expected = [file.read_bytes() for file in files]
    assert status == 0 and "NIQE change" in alone and ("gt_mean" in alone) == gt
    assert forks.run_ranks(2, "compute_metrics", arguments) == ([0, 0], alone)
    assert [file.read_bytes() for file in files] == expected


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_in_the_midst_of_their_work(victim, forks, photos):
    arguments = [*photos(30), "--metrics", "psnr", "--device", "cpu"]
    faults = {rank: SLOW for rank in range(3)} | {victim: {"fault": "kill in scoring", "n": 2}}
    begun = time.monotonic()
    statuses, said = forks.run_ranks(3, "compute_metrics", arguments, faults)
    assert statuses.pop(victim) == -signal.SIGKILL and statuses == [1, 1]
    assert time.monotonic() - begun < 50  # the pairs that have begun take longer
    assert "Traceback" not in said and "PSNR (dB)" not in said
    if victim:
        assert said.count(ONCE) == 1  # of rank 0 and rank 2, the first says so
    else:
        assert ONCE in said  # there is nobody left to ask who is first


def test_a_signal_ends_all(forks, photos):
    arguments = [*photos(30), "--metrics", "psnr", "--device", "cpu"]
    started = forks.start_ranks(2, "compute_metrics", arguments, {0: SLOW, 1: SLOW})
    end = time.monotonic() + 120
    while not all("PAUSED" in said.read_text() for _, said in started) and time.monotonic() < end:
        time.sleep(0.05)
    begun = time.monotonic()
    for pid, _ in started:
        os.kill(pid, signal.SIGTERM)
    assert [forks.wait(pid) for pid, _ in started] == [143, 143]
    assert time.monotonic() - begun < 30  # the pairs that have begun take longer
    assert all(group_ends(pid, 30) for pid, _ in started)
    assert "".join(said.read_text() for _, said in started).count("interrupted") == 1


def test_all_processes_refuse_with_one_sentence(forks, photos, tmp_path):
    arguments = photos(2)
    statuses, said = forks.run_ranks(3, "compute_metrics", [*arguments, "--csv", str(tmp_path)])
    assert statuses == [2] * 3
    assert said.startswith("error: cannot write") and said.count("\n") == 1
    for number in range(2):
        (tmp_path / "out" / f"{number}.png").write_bytes(b"no image")
    statuses, said = forks.run_ranks(2, "compute_metrics", [*arguments, "--metrics", "psnr"])
    assert statuses == [1] * 2 and said.count("error: none of the pairs could be scored") == 1
    assert said.count("left out") == 2


def test_a_network_must_be_the_same_in_all_processes_or_none_has_it(monkeypatch):
    loaded = LoadedNetwork(torch.nn.Identity(), Path("weights"), "1" * 64)
    monkeypatch.setattr(setup, "load_networks", lambda *_: ({"lpips": loaded}, {}))

    def load(other):
        told = lambda value: [value, other if isinstance(value, tuple) else None]  # noqa: E731
        monkeypatch.setattr(distributed, "gather", told)
        return setup.load_networks_alike(None, (), (), torch.device("cpu"))

    assert load(({}, {"lpips": "1" * 64})) == ({"lpips": loaded}, {})
    assert load(({"lpips": "no file there"}, {})) == ({}, {"lpips": "no file there"})
    with pytest.raises(UserError, match=r"different weights for LPIPS; put the same file"):
        load(({}, {"lpips": "0" * 64}))


def test_the_largest_files_come_first_and_a_missing_one_last(tmp_path):
    pairs = []
    for number, size in enumerate((10, 30, None, 20)):
        path = tmp_path / str(number)
        if size:
            path.write_bytes(b"x" * size)
        pairs.append(Pair(str(number), str(path), str(path)))
    assert sharing.by_size(pairs) == [1, 3, 0, 2]


@pytest.fixture
def two_processes(monkeypatch):
    """Lets this process be rank 0 of 2, and hear what the other has found."""
    heard = []

    def gather(value):
        return [value, heard.pop(0) if heard else ([], None, True, False)]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast", lambda value: value)
    monkeypatch.setattr(distributed, "gather", gather)
    return heard


def test_previews_come_from_the_other_process_unless_there_is_no_room(tmp_path, two_processes):
    pairs = [Pair(str(n), tmp_path / str(n), tmp_path / str(n)) for n in range(4)]
    theirs = [Scores(pairs[n], (1, 1), {}, previews={"gt": "elsewhere"}) for n in (1, 3)]
    two_processes += [
        ([(1, theirs[0], {"gt": b"a picture"})], None, False, False),
        ([], "no room there", False, False),
        ([(3, theirs[1], {"gt": b"a second one"})], None, True, False),
    ]
    scorer = Scorer(torch.device("cpu"), ["standard"], ["psnr"], preview_folder=tmp_path)
    results = dict(sharing.score_together(pairs, scorer))
    assert list(results) == [0, 2, 1, 3] and isinstance(results[0], LeftOut)
    assert results[1].previews["gt"].read_bytes() == b"a picture"
    assert results[3].previews == {} and scorer.preview_error == "no room there"


def test_scoring_ends_in_all_processes_when_torchrun_is_killed(tmp_path, two_processes):
    pairs = [Pair(str(n), tmp_path / str(n), tmp_path / str(n)) for n in range(2)]
    two_processes.append(([], None, False, True))  # the other one has seen it
    scorer = Scorer(torch.device("cpu"), ["standard"], ["psnr"])
    with pytest.raises(Interrupted) as end:
        list(sharing.score_together(pairs, scorer))
    assert end.value.signal == signal.SIGTERM


def test_a_network_asked_for_by_name_must_be_had_in_all_processes(forks, photos):
    arguments = [*photos(2), "--metrics", "lpips", "--lpips_weights", "nowhere.pth"]
    statuses, said = forks.run_ranks(3, "compute_metrics", arguments)
    assert statuses == [2] * 3 and said.count("no file at nowhere.pth") == said.count("\n") == 1
