"""Training runs that fail or are interrupted, as a user starts them: each must end, and say why."""

import contextlib
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

PATIENCE = 90  # seconds that a failing run may take to its end; 10 on an idle machine
STARTING = 240  # and one to its first saved state, on a busy machine


@pytest.fixture
def arguments(tiny_run):
    """A run that would go on for hours, with loading processes."""
    return [*tiny_run, "--image_size", "32", "--num_workers", "2", "--display_iter", "1"]


def start(command, **named):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes, **named)


def script(arguments):
    return [sys.executable, "train_rave.py", *arguments]


def workers_of(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        return [int(pid) for pid in children.read().split()]


def wait_for(condition, process):
    end = time.monotonic() + STARTING
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def saved_iterations(tmp_path):
    return torch.load(tmp_path / "run" / "last.pt", weights_only=True)["schedule"]["done"]


def assert_ends(process, status, *told, patience=PATIENCE):
    """With its status, one sentence, no traceback, and no process left."""
    try:
        _, said = process.communicate(timeout=patience)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"processes were left after {patience} s")
    assert process.returncode == status, said
    assert "Traceback" not in said
    sentence = said.strip().splitlines()[-1]
    assert all(part in sentence for part in told), said


def test_a_killed_loading_process(arguments, tmp_path):
    process = start(script(arguments))
    wait_for((tmp_path / "run" / "last.pt").exists, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert_ends(process, 1, "a loading process died", "--num_workers 0", "--resume goes on")
    assert saved_iterations(tmp_path) > 0


def test_a_photograph_that_vanishes(arguments, tmp_path, training_folders):
    photos = tmp_path / "backlit"
    shutil.copytree(training_folders / "backlit", photos)
    arguments[arguments.index("-b") + 1] = str(photos)
    process = start(script([*arguments, "--cache", "none"]))
    wait_for((tmp_path / "run" / "last.pt").exists, process)
    (photos / "2.png").unlink()
    said = "cannot be read any more", f"{photos / '2.png'} is missing"
    assert_ends(process, 1, *said, patience=STARTING)  # batches before it are loaded already
    assert saved_iterations(tmp_path) > 0


def test_memory_that_runs_out_in_a_step(arguments, tmp_path):
    process = start(script(arguments))
    wait_for((tmp_path / "run" / "last.pt").exists, process)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))
    assert_ends(process, 1, "out of memory", "--train_batch_size")
    assert saved_iterations(tmp_path) > 0


def test_a_full_shared_memory(arguments):
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small /dev/shm (root)")
    command = ["unshare", "-m", "sh", "-c", f'{small} && exec "$@"', "sh", *script(arguments)]
    process = start(command)
    wait_for(lambda: len(workers_of(process)) == 2 or process.poll() is not None, process)
    assert_ends(process, 1, "/dev/shm", "--num_workers 0", "--shm-size")


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
    said = forks.said
    end = time.monotonic() + STARTING
    while not (said.exists() and "PAUSED\n" in said.read_text()) and time.monotonic() < end:
        if not members(pid):
            break
        time.sleep(0.05)
    os.kill(pid, number)  # or it has ended, and waits for its parent
    ends = group_ends(pid, PATIENCE)  # else it is killed
    status, said = forks.wait(pid), said.read_text()
    assert (ends, status) == (True, 128 + number) and "PAUSED\n" in said, said
    assert "Traceback" not in said, said
    sentence = said.strip().splitlines()[-1]
    assert "interrupted" in sentence and told in sentence, said
