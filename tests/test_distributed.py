"""Runs that several processes share: the same mathematics, and no process left when one fails."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data.datasets import BatchStream, OwnKeys
from tests.commands import ROOT
from tests.runs import final, renamed, rows
from utils import distributed
from utils.errors import UserError
from utils.steps import TORCHRUN

MODES = ("rave", "clip-lit", "clip-lit-latent")
FOLDERS = {"backlit": "-b", "well_lit": "-r"}
ROUNDING = 1e-5
GRADIENT_ROUNDING = 1e-3  # relative; a photograph that counts twice, or not, is a third of them


@pytest.fixture
def command(tiny_run):
    """Gives a training script and a run through all its stages, at the published rates.

    Adam makes a full step of the least gradient, so that higher rates would magnify rounding.
    Batches of 3 from 4 photographs: the last one of an epoch has one image, and no rank but the
    last has any of it.
    """

    def of(mode):
        common = [*tiny_run, "--train_batch_size", "3", "--max_iters", "8"]
        common += ["--clip_grad_norm", "5", "--round_iters", "2"]
        if mode == "rave":
            return "train_rave", [*common, "--ema_decay", "0.5", "--paired_guidance"]
        return "train", [
            *common,
            *("--mode", mode, "--thre_train", "1e9", "--thre_prompt", "1e9"),
            *("--num_clip_pretrained_iters", "3", "--prompt_display_iter", "2"),
            *("--prompt_batch_size", "3", "--refinement_iters", "2"),
        ]

    return of


@pytest.fixture(scope="module")
def gone_through():
    """The folders of runs that one process has gone through, by mode."""
    return {}


@pytest.fixture
def alone(gone_through, forks, command, tmp_path):
    """Leaves in `tmp_path` the run that one process has gone through."""

    def run(mode):
        folder = tmp_path / "alone"
        if mode in gone_through:
            shutil.copytree(gone_through[mode], folder)
            return
        script, arguments = command(mode)
        status, said = forks.run(script, renamed(arguments, folder.name))
        assert status == 0, said
        gone_through[mode] = folder

    return run


def weights(tmp_path, name, mode):
    kinds = ["model"] if mode == "rave" else ["model", "guidance"]
    return {
        (kind, key): value for kind in kinds for key, value in final(tmp_path, name, kind).items()
    }


def differ_by(one, other):
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        *[(mode, 2) for mode in MODES],
        ("rave", 3),
        pytest.param("clip-lit", 3, marks=pytest.mark.long),
        pytest.param("clip-lit-latent", 3, marks=pytest.mark.long),
    ],
)
def test_several_processes_train_as_one_does(mode, ranks, forks, command, alone, tmp_path):
    alone(mode)
    script, arguments = command(mode)
    statuses, said = forks.run_ranks(ranks, script, arguments)
    assert statuses == [0] * ranks, said
    assert said.count("iterations done") == 1  # rank 0 speaks for all
    expected, found = (weights(tmp_path, name, mode) for name in ("alone", "run"))
    assert differ_by(expected, found) <= ROUNDING
    for line, other in zip(rows(tmp_path / "alone"), rows(tmp_path / "run"), strict=True):
        for name in ("stage", "round", "stage_iteration", "iteration"):
            assert line[name] == other[name]
        for name in ("loss", "guidance", "identity", "psnr"):
            assert line[name] == other[name] == "" or float(line[name]) == pytest.approx(
                float(other[name]), rel=1e-4
            )
    state, other = (torch.load(tmp_path / name / "last.pt") for name in ("alone", "run"))
    assert state["schedule"]["restarts"] == other["schedule"]["restarts"]


def test_several_processes_validate_as_one_does(forks, command, tmp_path):
    ranks = 3
    script, arguments = command("clip-lit-latent")
    photos = {name: arguments[arguments.index(flag) + 1] for name, flag in FOLDERS.items()}
    arguments += ["--val_input_path", photos["backlit"], "--val_gt_path", photos["well_lit"]]
    arguments += ["--val_iter", "2", "--val_size", "16", "--keep", "1"]
    status, said = forks.run(script, renamed(arguments, "alone"))
    assert status == 0, said
    statuses, said = forks.run_ranks(ranks, script, arguments)
    assert statuses == [0] * ranks, said
    scored = 0
    for line, other in zip(rows(tmp_path / "alone"), rows(tmp_path / "run"), strict=True):
        for name in ("val_psnr", "val_ssim", "p_backlit"):
            assert line[name] == other[name] == "" or float(line[name]) == pytest.approx(
                float(other[name]), rel=1e-2
            )
        scored += bool(line["val_psnr"])
    assert scored > 2
    one, other = (
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("alone", "run")
    )
    assert other["starts"][0]["processes"] == ranks and len(other["starts"]) == 1
    assert one["best_validation"]["iteration"] == other["best_validation"]["iteration"]
    for name in ("alone", "run"):
        files = {path.name for path in (tmp_path / name / "snapshots_model").iterdir()}
        assert "best_val.pth" in files and len([n for n in files if n[:5] == "iter_"]) == 1


def arrays(path):
    with path.open("rb") as stream:
        while stream.peek(1):
            yield np.load(stream)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_processes_and_parts_add_up(mode, forks, command, tmp_path):
    """At a rate of 0, so that all runs compute their gradients at the same weights."""
    script, arguments = command(mode)
    still = [*arguments, "--train_lr", "0", *(["--prompt_lr", "0"] if script == "train" else [])]
    gradients = []
    for ranks, parts in ((1, 1), (2, 2), *([(2, 1), (1, 2)] if mode == "rave" else [])):
        name = f"gradients{ranks}{parts}"
        show = {"fault": "a step", "n": 1, "on": True}
        variables = {rank: {"GRADIENTS": str(tmp_path / f"{name}.{rank}")} for rank in range(ranks)}
        faults = {rank: show | {"environment": variables[rank]} for rank in range(ranks)}
        named = [*renamed(still, name), "--accumulate", str(parts)]
        statuses, said = forks.run_ranks(ranks, script, named, faults)
        assert statuses == [0] * ranks, said
        gradients.append(list(arrays(tmp_path / f"{name}.0")))
        assert len(gradients[-1]) >= 8
    for others in gradients[1:]:
        for other, whole in zip(others, gradients[0], strict=True):
            assert np.abs(other - whole).max() <= GRADIENT_ROUNDING * np.abs(whole).max()


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_in_parts_is_the_whole_batch(mode, forks, command, alone, tmp_path):
    alone(mode)
    script, arguments = command(mode)
    status, said = forks.run(script, [*arguments, "--accumulate", "2"])
    assert status == 0, said
    assert differ_by(weights(tmp_path, "alone", mode), weights(tmp_path, "run", mode)) <= ROUNDING


def test_a_run_goes_on_with_another_number_of_processes(forks, command, alone, tmp_path):
    alone("clip-lit-latent")
    script, arguments = command("clip-lit-latent")
    for ranks, limit in ((3, "3"), (1, "5"), (2, "8")):
        given = [*arguments, "--max_iters", limit, *(["--resume"] if limit != "3" else [])]
        statuses, said = forks.run_ranks(ranks, script, given)
        assert statuses == [0] * ranks, said
    expected, found = (weights(tmp_path, n, "clip-lit-latent") for n in ("alone", "run"))
    assert differ_by(expected, found) <= ROUNDING


def check_end(tmp_path, said, sentence):
    """Check that a run said one thing, and which; return the iterations that its state has."""
    errors = [line for line in said.splitlines() if line.startswith(("error: ", "interrupted"))]
    assert len(errors) == 1 and sentence in errors[0], said
    assert "Traceback" not in said, said
    return torch.load(tmp_path / "run" / "last.pt")["schedule"]["done"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_which_goes_on(killed, forks, command, alone, tmp_path):
    alone("rave")
    script, arguments = command("rave")
    faults = {killed: {"fault": "kill in a step", "n": 5}}
    started = time.monotonic()
    statuses, said = forks.run_ranks(2, script, arguments, faults)
    assert time.monotonic() - started < 300
    assert statuses[killed] == -signal.SIGKILL and statuses[1 - killed] == 1, said
    check_end(tmp_path, said, "another process of this run has ended. Stopped at iteration 1")
    statuses, said = forks.run_ranks(3, script, [*arguments, "--resume"])
    assert statuses == [0, 0, 0], said
    expected, found = (weights(tmp_path, name, "rave") for name in ("alone", "run"))
    assert differ_by(expected, found) <= ROUNDING


@pytest.mark.parametrize(
    "faults",
    [
        {1: {"fault": "SIGTERM", "n": 3}},
        {0: {"fault": "SIGTERM", "n": 4}, 1: {"fault": "SIGTERM", "n": 3}},
    ],
)
def test_all_processes_end_after_the_same_iteration(faults, forks, command, tmp_path):
    script, arguments = command("rave")
    statuses, said = forks.run_ranks(2, script, arguments, faults)
    assert statuses == [143, 143], said
    assert check_end(tmp_path, said, "stopped at iteration 3 of warm-up; the same command") == 3


def test_a_process_without_memory_says_so_for_all(forks, command, tmp_path):
    script, arguments = command("rave")
    faults = {1: {"fault": "no memory in a step", "n": 3}}
    statuses, said = forks.run_ranks(2, script, arguments, faults)
    assert statuses == [1, 1], said
    assert check_end(tmp_path, said, "out of memory; ") == 2


def test_sigusr1_to_one_process_saves_the_run(forks, command, tmp_path):
    script, arguments = command("rave")
    saves = []
    for faults in ({}, {1: {"fault": "SIGUSR1", "n": 1}}):
        named = renamed(arguments, f"run{len(saves)}")
        started = forks.start_ranks(2, script, named, faults)
        assert [forks.wait(pid) for pid, _ in started] == [0, 0]
        saves.append(json.loads(Path(f"{started[0][1]}.calls").read_text())["kill while writing"])
    assert saves[1] == saves[0] + 1


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_each_photograph_is_read_once_over_all_processes(cache, forks, command, tmp_path):
    script, arguments = command("rave")
    arguments = [*arguments, "--cache", cache, "--interpret_only"]
    found = []
    for ranks in (1, 3):
        home = {"environment": {"XDG_CACHE_HOME": str(tmp_path / f"home{ranks}")}}
        named = renamed(arguments, f"ranks{ranks}")
        started = forks.start_ranks(ranks, script, named, {rank: home for rank in range(ranks)})
        assert [forks.wait(pid) for pid, _ in started] == [0] * ranks
        calls = [json.loads(Path(f"{said}.calls").read_text()) for _, said in started]
        if cache != "none":  # else embedding reads them again
            assert sum(each.get("a photograph", 0) for each in calls) == 8
        files = sorted((tmp_path / f"home{ranks}" / "rave" / "photos").glob("*.npy"))
        assert len(files) == (4 if cache == "disk" else 0)
        found.append([np.load(file) for file in files])
    assert all(map(np.array_equal, *found))
    vectors = [torch.load(tmp_path / f"ranks{ranks}" / "residual.pt")["r"] for ranks in (1, 3)]
    assert (vectors[0] - vectors[1]).abs().max() <= 1e-6  # other batches are embedded


def test_all_processes_refuse_what_one_refuses(forks, command):
    script, arguments = command("rave")
    statuses, said = forks.run_ranks(3, script, [*arguments, "--resume"])
    assert statuses == [2, 2, 2], said
    assert said.count("error: ") == said.count("no run to resume") == 1, said


def processes_with(word):
    """The processes that have a word in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (entry / "cmdline").read_text().split("\0"):
                found.append(int(entry.name))
    return found


def wait_until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_a_killed_torchrun_ends_its_processes(tiny_run, tmp_path):
    name = f"orphans{os.getpid()}"
    command = [sys.executable, *TORCHRUN, "2"]
    command += ["train_rave.py", *renamed(tiny_run, name), "--num_reconstruction_iters", "10000"]
    with (tmp_path / "said").open("w") as said:
        torchrun = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        wait_until((tmp_path / name / "last.pt").exists)
        torchrun.kill()
        torchrun.wait()
        wait_until(lambda: not processes_with(name), 30)
    text = (tmp_path / "said").read_text()
    assert text.count("the same command with --resume goes on") == 1, text
    done = torch.load(tmp_path / name / "last.pt")["schedule"]["done"]
    assert f"stopped at iteration {done} of warm-up" in text


def test_a_command_line_is_refused_once(forks, tiny_run):
    arguments = [*tiny_run, "--image_size", "0"]
    for rank, times in (("0", 1), ("1", 0)):
        variables = {"RANK": rank, "WORLD_SIZE": "2"}
        status, said = forks.run("train_rave", arguments, environment=variables)
        assert (status, said.count("error: argument --image_size")) == (2, times), said
    assert not said


def test_variables_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"LOCAL_RANK.*MASTER_ADDR"):
        distributed.join(torch.device("cpu"))
    monkeypatch.undo()
    assert distributed.join(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shards_are_the_whole_once(size, ranks, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    rows = [row for rank in range(ranks) for row in distributed.shard(size, rank)]
    assert rows == list(range(size))
    lengths = [len(distributed.shard(size, rank)) for rank in range(ranks)]
    assert max(lengths) - min(lengths) <= 1
    batches = BatchStream(10, size, seed=1)
    drawn = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        drawn.append(list(islice(OwnKeys(batches), 6)))
    for number, keys in enumerate(islice(batches, 6)):
        own = [each[number] for each in drawn]
        assert all(part and set(part) <= set(keys) for part in own)
        if len(keys) >= ranks:
            assert [key for part in own for key in part] == keys


ENDING_BADLY = """
import atexit, os, sys
import torch
from utils import distributed
from utils.script import exit_with

def main():
    distributed.join(torch.device("cpu"))
    atexit.register(os.abort)  # as a thread of a library's does that ends too late
    print(f"{distributed.rank()} done\\n", end="")  # in one piece, even unbuffered

exit_with(main)
"""


def test_what_goes_wrong_while_python_ends_does_not_undo_a_run(tmp_path):
    (tmp_path / "script.py").write_text(ENDING_BADLY)
    command = [sys.executable, *TORCHRUN, "2", str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 done", "1 done"]
