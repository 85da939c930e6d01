"""Runs that are killed, meet full disks, or find what they left damaged: the end is the same."""

import contextlib
import copy
import functools
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.enhancer import UNetEnhancer
from tests.commands import ROOT
from tests.forks import group_ends, members
from tests.runs import renamed, rows
from utils.checkpoint import save_weights

ITERATIONS = 8
MODES = ("rave", "clip-lit", "clip-lit-latent")


def modes(*quick):
    """Try a test in all modes, or in `make test` in some."""
    whole = os.environ.get("FAULTS") == "whole"
    return pytest.mark.parametrize("command", MODES if whole else quick, indirect=True)


@pytest.fixture
def command(request, tiny_run):
    """A training script and a run through all its stages, some with an average of the weights."""
    common = [*tiny_run, "--max_iters", str(ITERATIONS), "--round_iters", "2"]
    if request.param == "rave":
        return "train_rave", [*common, "--ema_decay", "0.9", "--paired_guidance"]
    return "train", [
        *common,
        *("--mode", request.param, "--thre_train", "1e9", "--thre_prompt", "1e9"),
        *("--num_clip_pretrained_iters", "3", "--prompt_display_iter", "2"),
        *("--prompt_batch_size", "4", "--refinement_iters", "2"),
    ]


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    """Gives the folder of a whole run, its seconds, and how often each place was met."""
    known = {}

    def once(script, arguments):
        key = script, *arguments[arguments.index("--image_size") :]
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            started = time.monotonic()
            named = [*renamed(arguments, "whole"), "--save_dir", str(folder)]
            status, said = forks.run(script, named)
            assert status == 0, said
            calls = json.loads(Path(f"{forks.said}.calls").read_text())
            known[key] = folder / "whole", time.monotonic() - started, calls
        return known[key]

    return once


UNEQUAL = ("log.csv", "run.json", "run.lock")  # the log but for its seconds


def contents(folder):
    """What a run's folder holds, without what differs between equal runs."""
    found = {"log": rows(folder)}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix in (".pt", ".pth"):
            found[name] = torch.load(path, weights_only=True)
        elif path.is_file() and path.suffix != ".png" and name not in UNEQUAL:
            found[name] = path.read_bytes()
    del found["last.pt"]["schedule"]["seconds"]
    return found


def difference(one, other, where=""):
    """Where two trees of values differ, or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{where}: {one.keys() ^ other.keys()}"
        found = (difference(one[key], other[key], f"{where}.{key}") for key in one)
        return next(filter(None, found), None)
    equal = type(one) is type(other)
    if equal:
        equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return None if equal else f"{where}: {one} and {other}"


def goes_on_to_the_same(forks, script, arguments, folder, whole):
    """A run that broke off at any moment ends as if nothing had been."""
    resume = ["--resume"] if folder.exists() else []
    status, said = forks.run(script, [*arguments, *resume])
    assert status == 0, said
    assert (different := difference(contents(folder), contents(whole))) is None, different


def one_sentence(status, said, expected):
    assert status == expected, said
    assert "Traceback" not in said, said
    assert said.strip().splitlines()[-1].startswith("error: "), said


@modes(*MODES)
def test_kills_at_random_moments(command, forks, undisturbed, fault, count, tmp_path):
    script, arguments = command
    whole, seconds, calls = undisturbed(script, arguments)
    chance = random.Random(script)
    kind = fault("a training run is killed")
    for number in range(count(1, 20)):
        named = renamed(arguments, f"run{number}")
        name = chance.choice(["after", "kill in a step", "kill in a record"])
        if name == "after":
            moment = chance.uniform(0.1, 1) * seconds
        else:
            moment = chance.randint(1, calls[name])
        with kind.case(f"{script}, {name} {moment}"):
            status, said = forks.run(script, named, name, moment)
            assert status < 0 or name == "after", said
            if chance.random() < 0.3:  # as a loss of power may leave it
                with (
                    contextlib.suppress(FileNotFoundError),
                    (tmp_path / "log.csv").open("a") as log,
                ):
                    log.write("5,warm-")
            goes_on_to_the_same(forks, script, named, tmp_path / f"run{number}", whole)


@modes(*MODES)
def test_kills_in_the_midst_of_writing(command, forks, undisturbed, fault, count, tmp_path):
    script, arguments = command
    whole, _, calls = undisturbed(script, arguments)
    chance = random.Random(script)
    kind = fault("a training run is killed while it writes")
    for number in range(count(1, 20)):
        named = renamed(arguments, f"run{number}")
        name = chance.choice(["kill while writing", "kill before renaming"])
        moment = chance.randint(1, calls[name])
        with kind.case(f"{script}, {name} {moment}"):
            status, said = forks.run(script, named, name, moment)
            assert status == -signal.SIGKILL, said
            assert any(".tmp" in path.name for path in (tmp_path / f"run{number}").rglob("*"))
            goes_on_to_the_same(forks, script, named, tmp_path / f"run{number}", whole)


@modes("clip-lit-latent")
def test_a_full_disk_at_each_write(command, forks, undisturbed, fault, count, tmp_path):
    script, arguments = command
    whole, _, calls = undisturbed(script, arguments)
    kind = fault("the disk is full when a training run writes")
    names = ("full at creating", "full while writing", "full at renaming", "full at logging")
    cases = [(name, n) for name in names for n in range(1, calls[name] + 1)]
    chance = random.Random(script)
    for number, (name, n) in enumerate(chance.sample(cases, count(1, len(cases)))):
        named, on = renamed(arguments, f"run{number}"), chance.random() < 0.5
        with kind.case(f"{script}, {name} {n}, {on}"):
            one_sentence(*forks.run(script, named, name, n, on), 1)
            goes_on_to_the_same(forks, script, named, tmp_path / f"run{number}", whole)


@modes("rave")
def test_sigusr1_saves_and_goes_on(command, forks, undisturbed, fault, count, tmp_path):
    script, arguments = command
    whole, _, calls = undisturbed(script, arguments)
    writing = "full while writing"  # counts the calls of what it would meet
    kind = fault("SIGUSR1 comes in training")
    for n in range(1, count(1, calls["SIGUSR1"]) + 1):
        with kind.case(f"{script}, step {n}"):
            status, said = forks.run(script, renamed(arguments, f"run{n}"), "SIGUSR1", n)
            assert status == 0, said
            written = json.loads(Path(f"{forks.said}.calls").read_text())[writing]
            assert written >= calls[writing] + (n == 1)  # there is no display at the first step
            assert difference(contents(tmp_path / f"run{n}"), contents(whole)) is None


def running(forks, script, arguments, folder):
    """Start a run without an end; return its process once a state is saved."""
    arguments = [*arguments, "--max_iters", "1000000", "--num_workers", "2", "--display_iter", "1"]
    pid = forks.start(script, arguments)
    end = time.monotonic() + 120
    while not (folder / "last.pt").exists():
        assert members(pid) and time.monotonic() < end, forks.said.read_text()
        time.sleep(0.02)
    return pid


def test_a_folder_has_one_run_at_a_time_and_no_process_outlives_it(
    forks, tiny_run, fault, count, tmp_path
):
    for number in range(count(1, 50)):
        named = renamed(tiny_run, f"run{number}")
        pid = running(forks, "train_rave", named, tmp_path / f"run{number}")
        with fault("two runs of one name at once").case(number):
            status, said = forks.run("train_rave", [*named, *["--resume"] * (number % 2)])
            one_sentence(status, said, 2)
            assert f"is in use by process {pid} on " in said
        with fault("the main process is killed").case(number):
            os.kill(pid, signal.SIGKILL)
            assert forks.wait(pid) == -signal.SIGKILL
            assert members(pid)  # loading processes live on for a moment, and hold no lock
            again = [*named, "--display_iter", "1", "--max_iters", "1", "--resume"]
            status, said = forks.run("train_rave", again)
            assert status == 0, said
            assert group_ends(pid, 20)


def test_a_loading_process_is_killed(forks, tiny_run, fault, count, tmp_path):
    for number in range(count(0, 50)):  # tests/test_failing_runs.py tries it once
        with fault("a loading process is killed").case(number):
            named = renamed(tiny_run, f"run{number}")
            pid = running(forks, "train_rave", named, tmp_path / f"run{number}")
            worker = next(process for process in members(pid) if process != pid)
            os.kill(worker, signal.SIGKILL)
            one_sentence(forks.wait(pid), forks.said.read_text(), 1)
            assert group_ends(pid, 20)


def test_inference_killed_at_random_moments(forks, fault, count, tmp_path):
    photos, weights = tmp_path / "photos", tmp_path / "weights.pth"
    photos.mkdir()
    save_weights(UNetEnhancer(), weights)
    rng = np.random.default_rng(0)
    for number in range(50):
        pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    command = ["--input", str(photos), "--unet_pretrain_dir", str(weights), "--device", "cpu"]
    started = time.monotonic()
    assert forks.run("inference", [*command, "--output", str(tmp_path / "whole")])[0] == 0
    seconds = time.monotonic() - started
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == 50
    chance = random.Random(0)
    kind = fault("inference is killed")
    for number in range(count(1, 50)):
        output = tmp_path / f"output{number}"
        named = [*command, "--output", str(output), "--skip_existing"]
        name = chance.choice(["after", "kill while writing", "kill before renaming"])
        moment = chance.uniform(0, seconds) if name == "after" else chance.randint(1, 50)
        with kind.case(f"{name} {moment}"):
            forks.run("inference", named, name, moment)
            status, said = forks.run("inference", named)
            assert status == 0, said
            results = {path.name: path.read_bytes() for path in output.iterdir()}
            assert results == whole


@pytest.mark.parametrize("script", ["inference", "compute_metrics", "train_rave"])
def test_signals_at_random_moments(script, forks, tiny_run, fault, count, tmp_path):
    photos, weights = tmp_path / "photos", tmp_path / "weights.pth"
    photos.mkdir()
    save_weights(UNetEnhancer(), weights)
    for number in range(20):
        Image.new("RGB", (64, 48), (number, 50, 90)).save(photos / f"{number}.png")
    arguments = {
        "inference": ["-i", str(photos), "-c", str(weights), "-o", "OUT", "--device", "cpu"],
        "compute_metrics": [
            *("--gt_images_path", str(photos), "--enhanced_images_path", str(photos)),
            *("--metrics", "psnr", "ssim", "--csv", "OUT/a.csv", "--report", "OUT/r.html"),
        ],
        "train_rave": [*tiny_run, "--max_iters", "8", "--save_dir", "OUT"],
    }[script]

    def command(output):
        return [word.replace("OUT", str(output)) for word in arguments]

    started = time.monotonic()
    assert forks.run(script, command(tmp_path / "whole"))[0] == 0
    seconds = time.monotonic() - started
    chance, kind = random.Random(0), fault("interrupted at any moment")
    for number in range(count(2, 30)):
        sent, output = chance.choice([signal.SIGINT, signal.SIGTERM]), tmp_path / f"out{number}"
        with kind.case(f"{script} {sent}"):
            pid = forks.start(script, command(output))
            time.sleep(chance.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
            status, said = forks.wait(pid), forks.said.read_text()
            assert status in (0, 128 + sent) or (status == -sent and not said), (status, said)
            assert "Traceback" not in said and (status <= 0 or "interrupted" in said)
            assert not [path for path in output.rglob("*") if ".tmp" in path.name]


@pytest.fixture(scope="module")
def kept():
    """Folders of runs that were killed, by their modes."""
    return {}


@pytest.fixture
def broken_off(command, forks, undisturbed, tmp_path, kept):
    """Gives a run that was killed in its last round: script, arguments, folder, the whole run."""
    script, arguments = command
    whole, _, calls = undisturbed(script, arguments)
    if whole not in kept:
        status, said = forks.run(script, arguments, "kill in a record", calls["kill in a record"])
        assert status < 0, said
        kept[whole] = shutil.copytree(tmp_path / "run", tmp_path / "kept")
    else:
        shutil.copytree(kept[whole], tmp_path / "run")
    return script, arguments, tmp_path / "run", whole


def nodes(value, path=()):
    """The paths to all values of nested dicts, of each dict of tensors only two."""
    if path:
        yield path
    if isinstance(value, dict):
        tensors = [key for key, item in value.items() if isinstance(item, torch.Tensor)]
        for key in value:
            if key not in tensors[2:]:
                yield from nodes(value[key], (*path, key))


def tampered(state, chance):
    """A copy of a state with one value deleted, replaced or spoilt, and what was done to it."""
    state = copy.deepcopy(state)
    *above, key = path = chance.choice(list(nodes(state)))
    holder = functools.reduce(dict.__getitem__, above, state)
    old = holder[key]
    others = [None, -7, 1.5, math.nan, "x", [], {}, True, torch.tensor(math.nan), torch.ones(3, 5)]
    others = [other for other in others if not same_kind(other, old)]
    ways = ["delete", "rename", *others]
    if above == ["record", "options"]:  # one that is missing counts as its default
        ways = others
    if isinstance(old, torch.Tensor):
        ways += [old[None], old.int() + 1j, old.to_sparse(), torch.full_like(old.float(), math.nan)]
    way = chance.choice(ways)
    if isinstance(way, str) and way in ("delete", "rename"):
        del holder[key]
        if way == "rename":
            holder[f"{key}?"] = old
    else:
        holder[key] = way
    return state, f"{path}: {way}"


def same_kind(other, old):
    """Whether a value may as well stand where another is: nothing is wrong with it."""
    if isinstance(old, dict):
        return other == {} or (other is None)
    return type(other) is type(old) and not isinstance(old, torch.Tensor)


def assert_refused(status, said, *told):
    one_sentence(status, said, 2)
    assert all(part in said for part in told), said


@modes("clip-lit")
def test_a_saved_state_that_was_tampered_with(broken_off, forks, fault, count):
    script, arguments, folder, _ = broken_off
    last = folder / "last.pt"
    state = torch.load(last, weights_only=True)
    chance = random.Random(script)
    kind = fault("last.pt is tampered with")
    for _ in range(count(2, 150)):
        other, what = tampered(state, chance)
        torch.save(other, last)
        before = last.read_bytes()
        with kind.case(f"{script}, {what}"):
            assert_refused(*forks.run(script, [*arguments, "--resume"]), "run")
            assert last.read_bytes() == before


@modes("rave")
def test_a_saved_state_that_is_another_file(broken_off, forks, fault, count, tmp_path):
    script, arguments, folder, whole = broken_off
    last = folder / "last.pt"
    state = last.read_bytes()
    chance = random.Random(script)
    pretend = {}
    for name, value in {
        "dict": {},
        "list": [1],
        "number": 3,
        "layout": {"layout": torch.ones(2)},
        "older": {"layout": 2, "arguments": {}},
    }.items():
        torch.save(value, tmp_path / "other")
        pretend[name] = (tmp_path / "other").read_bytes()
    pretend["nothing"], pretend["text"] = b"", b"no state at all\n" * 50
    pretend["weights"] = (whole / "snapshots_model" / "final.pth").read_bytes()
    pretend["log"] = (whole / "log.csv").read_bytes()
    for number in range(20):
        cut = chance.randrange(len(state))
        pretend[f"cut {number}"] = state[:cut]
    kind = fault("last.pt is another file, or cut short")
    for name in chance.sample(sorted(pretend), count(2, len(pretend))):
        last.write_bytes(pretend[name])
        with kind.case(f"{script}, {name}"):
            assert_refused(*forks.run(script, [*arguments, "--resume"]), "last.pt")


@modes("clip-lit")
def test_what_a_run_reads_may_move_but_not_change(
    broken_off, forks, fault, count, tmp_path, training_folders
):
    script, arguments, folder, whole = broken_off
    photos = shutil.copytree(training_folders, tmp_path / "photos")
    for name in ("clip_weights", "identity_weights"):
        shutil.copy(value_of(arguments, f"--{name}"), tmp_path / f"{name}.other")
    link = tmp_path / "link"
    link.symlink_to(photos)
    moves = {
        "slash": ["-b", f"{photos}/backlit/", "-r", f"{photos}/../photos/well_lit"],
        "relative": ["-b", os.path.relpath(photos / "backlit", ROOT)],
        "link": ["-b", str(link / "backlit"), "-r", str(link / "well_lit") + "//"],
        "weights": ["--clip_weights", str(tmp_path / "clip_weights.other")],
        "both": [f"--{n}={tmp_path}/{n}.other" for n in ("clip_weights", "identity_weights")],
        "cache": ["--cache", "none", "--num_workers", "1", "--num_epochs", "500"],
        "ignored": ["--unet_pretrain_dir", "none.pth", "--load_pretrain_unet", "False"],
        "default": ["--weight_decay", "0.001", "--load_pretrain_unet", "False"],
    }
    chance = random.Random(script)
    before = shutil.copytree(folder, tmp_path / "before")
    for name in chance.sample(sorted(moves), count(1, len(moves))):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        with fault("what a run reads is moved").case(f"{script}, {name}"):
            status, said = forks.run(script, [*arguments, *moves[name], "--resume"])
            assert status == 0, said
            assert (found := difference(contents(folder), contents(whole))) is None, found
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    for number in range(count(1, 30)):
        side = chance.choice(["backlit", "well_lit"])
        changed = shutil.copytree(photos, tmp_path / f"changed{number}") / side
        what = chance.choice(["remove", "add", "grow", "rename"])
        photo = changed / f"{chance.randrange(4)}.png"
        if what == "remove":
            photo.unlink()
        elif what == "rename":
            photo.rename(photo.with_name("9.png"))
        else:
            new = photo if what == "grow" else photo.with_name("8.png")
            new.write_bytes(photo.read_bytes() + b"more")
        given = ["-b", str(changed.parent / "backlit"), "-r", str(changed.parent / "well_lit")]
        with fault("photographs change before a run is resumed").case(f"{script}, {side} {what}"):
            told = f"--{side}_images_path", "such as"
            assert_refused(*forks.run(script, [*arguments, *given, "--resume"]), *told)


def value_of(arguments, flag):
    return arguments[arguments.index(flag) + 1]
