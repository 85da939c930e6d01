"""A long run needs no more memory and no more open files at its end than at its begin."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageCms

from data.images import Photo, write_photo
from models.enhancer import UNetEnhancer
from tests.commands import ROOT
from tests.faults.conftest import WHOLE
from tests.forks import Forks
from utils.checkpoint import save_weights

PAGE = os.sysconf("SC_PAGE_SIZE") // 1024  # KiB
# A kept photograph would cost 100 KiB and more, most of it this profile, which is read in no time:
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().ljust(100 * 1024)
Sample = tuple[int, int, int]  # photographs or steps done, KiB in memory, open files

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").is_file(),
    reason="needs /proc, which tells a process's memory and open files",
)


def run(forks: Forks, script: str, arguments: list[str], done: Callable[[], int]) -> list[Sample]:
    """Run a script to its end, in `make test-faults` as a user does, and watch it."""
    if not WHOLE:
        pid = forks.start(script, arguments)
        samples = list(watch(pid, done))
        assert forks.wait(pid) == 0, forks.said.read_text()
        return samples
    said, environment = forks.folder / script, {**os.environ, "OMP_NUM_THREADS": "1"}
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, f"{script}.py", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    samples = list(watch(process.pid, done))
    assert process.wait() == 0, said.read_text()
    return samples


def watch(pid: int, done: Callable[[], int]) -> Iterator[Sample]:
    """Sample a process, a hundred times a second, until it ends."""
    process = Path(f"/proc/{pid}")
    with suppress(OSError):  # what a process has open cannot be listed once it has ended
        while True:
            _, resident, of_files, *_ = map(int, (process / "statm").read_text().split())
            if not resident:
                return
            # Without the libraries' pages, which a fork maps one by one as it comes to need them:
            yield done(), PAGE * (resident - of_files), len(os.listdir(process / "fd"))
            time.sleep(0.01)


def check_slopes(samples: list[Sample], total: int, what: str, most: float, measured) -> None:
    """Fit lines to memory and open files over the last three quarters; bound their slopes.

    Args:
        samples: of the whole run.
        total: photographs or steps.
        what: "photograph" or "step".
        most: KiB of memory for each.
        measured: takes the figures.
    """
    samples = [sample for sample in samples if total / 4 <= sample[0] < total]
    done, memory, handles = zip(*samples, strict=True)
    slope, opened = (statistics.linear_regression(done, y).slope for y in (memory, handles))
    measured(f"memory slope: {slope:.3f} KiB and {opened:.5f} open files a {what}, of {total}")
    assert slope < most
    assert opened < (0.01 if WHOLE else 0.1)  # files that every hundredth, every tenth leaves open


def photographs(folder: Path, number: int) -> Path:
    """Make a folder of links to three dozen photographs of various kinds and sizes, in turn."""
    rng = np.random.default_rng(0)
    files = []
    for k in range(36):
        suffix = (".png", ".jpg", ".tif", ".webp")[k % 4]
        dtype, channels = ((np.uint8, 3), (np.uint16, 3), (np.uint8, 1))[k % 3]
        shape = (*rng.integers(8, 81, 2), channels)
        pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype)
        files.append(folder / "files" / f"{k}{suffix}")
        write_photo(Photo(pixels, icc_profile=PROFILE), files[-1])
    (folder / "photos").mkdir()
    for n in range(number):
        file = files[n % len(files)]
        (folder / "photos" / f"{n}{file.suffix}").symlink_to(file)
    return folder / "photos"


def test_inference_does_not_grow(forks, tmp_path, count, measured) -> None:
    number, output = count(144, 2000), tmp_path / "out"
    output.mkdir()
    save_weights(UNetEnhancer(), tmp_path / "weights.pth")
    arguments = ["-i", str(photographs(tmp_path, number)), "-o", str(output), "--device", "cpu"]
    arguments += ["-c", str(tmp_path / "weights.pth"), "--format", "same"]
    samples = run(forks, "inference", arguments, lambda: len(os.listdir(output)))
    check_slopes(samples, number, "photograph", count(50, 4), measured)


def test_training_does_not_grow(forks, tiny_run, tmp_path, count, measured) -> None:
    steps, display = count(40, 5000), str(count(5, 20))
    arguments = [*tiny_run, "--image_size", "32", "--num_reconstruction_iters", str(steps // 25)]
    arguments += ["--display_iter", display, "--num_epochs", "5000", "--max_iters", str(steps)]
    arguments += ["--train_batch_size", "1"]  # half the time
    log = tmp_path / "run" / "log.csv"

    def done() -> int:
        last = log.read_text().splitlines()[-1].split(",")[0] if log.exists() else ""
        return int(last) if last.isdecimal() else 0

    # The round begins early, since memory settles in its first thousand steps; measured are the
    # last three quarters. A kept loss holds on to 1.5 MB a step; settling in takes 0.1 MB a step of
    # a few dozen.
    samples = run(forks, "train_rave", arguments, done)
    check_slopes(samples, steps, "step", count(500, 1), measured)
