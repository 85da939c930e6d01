"""Training runs that fail or are interrupted: each must end, and say why."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.commands import ROOT
from tests.forks import group_ends, members

PATIENCE = 90  # seconds that a failing run may take to its end; a few on an idle machine
STARTING = 240  # and one to its first saved state, on a busy machine


@pytest.fixture
def arguments(tiny_run):
    """A run that would go on for hours, with loading processes."""
    return [*tiny_run, "--image_size", "32", "--num_workers", "2", "--display_iter", "1"]


@pytest.fixture
def run(arguments, forks, tmp_path):
    """Starts a run of `train_rave.py`; returns its process id once it has saved a state.

    Args:
        more: arguments beyond those that all have.
    """
    started = []

    def run(*more):
        started.append(pid := forks.start("train_rave", [*arguments, *more]))
        wait_for((tmp_path / "run" / "last.pt").exists, lambda: members(pid), forks.said.read_text)
        return pid

    yield run
    for pid in started:
        group_ends(pid, 0)  # it would go on for hours


def workers_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(pid) for pid in children.read().split()]


def wait_for(condition, alive, said):
    end = time.monotonic() + STARTING
    while not condition():
        assert alive() and time.monotonic() < end, said()
        time.sleep(0.05)


def saved_iterations(tmp_path):
    return torch.load(tmp_path / "run" / "last.pt", weights_only=True)["schedule"]["done"]


def assert_ends(pid, forks, status, *told, patience=PATIENCE):
    """With its status, one sentence, no traceback, and no process left."""
    ends = group_ends(pid, patience)  # else it is killed
    found, said = forks.wait(pid), forks.said.read_text()
    assert (ends, found) == (True, status), said
    check_sentence(said, *told)


def check_sentence(said, *told):
    assert "Traceback" not in said, said
    sentence = said.strip().splitlines()[-1]
    assert all(part in sentence for part in told), said


def test_a_killed_loading_process(run, forks, tmp_path):
    pid = run()
    os.kill(workers_of(pid)[0], signal.SIGKILL)
    told = "a loading process died", "--num_workers 0", "--resume goes on"
    assert_ends(pid, forks, 1, *told)
    assert saved_iterations(tmp_path) > 0


def test_a_photograph_that_vanishes(run, forks, tmp_path, training_folders):
    photos = tmp_path / "backlit"
    shutil.copytree(training_folders / "backlit", photos)
    pid = run("-b", str(photos), "--cache", "none")
    (photos / "2.png").unlink()
    said = "cannot be read any more", f"{photos / '2.png'} is missing"
    assert_ends(pid, forks, 1, *said, patience=STARTING)  # batches before it are loaded already
    assert saved_iterations(tmp_path) > 0


def test_memory_that_runs_out_in_a_step(run, forks, tmp_path):
    pid = run()
    resource.prlimit(pid, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))
    assert_ends(pid, forks, 1, "out of memory", "--train_batch_size")
    assert saved_iterations(tmp_path) > 0


def test_a_full_shared_memory(arguments):
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small /dev/shm (root)")
    command = ["unshare", "-m", "sh", "-c", f'{small} && exec "$@"', "sh"]
    process = subprocess.Popen(
        [*command, sys.executable, "train_rave.py", *arguments],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = group_ends(process.pid, STARTING)  # else it is killed
    _, said = process.communicate()
    assert (ends, process.returncode) == (True, 1), said
    check_sentence(said, "/dev/shm", "--num_workers 0", "--shm-size")


@pytest.mark.parametrize(
    ("phase", "seconds", "number", "told"),
    [
        ("data.photo_store.read_rgb", 2, signal.SIGTERM, "interrupted"),
        ("training.residual.build_residual", 60, signal.SIGINT, "interrupted"),
        ("models.vocabulary.features_behind_one_start", 60, signal.SIGTERM, "interrupted"),
        ("torch.Tensor.backward", 60, signal.SIGTERM, "iteration 0 of warm-up"),  # compiled code
        ("training.run.Run.save", 1, signal.SIGTERM, "iteration 1 of warm-up"),
    ],
)
def test_a_signal_in_any_phase(arguments, tmp_path, forks, phase, seconds, number, told):
    shift = ["--remove_first_n_tokens", "3"] if "vocabulary" in phase else []
    arguments = [*arguments, "--max_iters", "20", *shift]  # so that one never paused ends, too
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # no vocabulary in it
    pid = forks.start("train_rave", arguments, pause=(phase, seconds), environment=cache)
    said, alive = forks.said, lambda: members(pid)
    wait_for(lambda: said.exists() and "PAUSED\n" in said.read_text(), alive, said.read_text)
    os.kill(pid, number)
    assert_ends(pid, forks, 128 + number, "interrupted", told)
