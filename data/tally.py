"""What an inference run has done, and how far it has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from data.images import Photo
from data.jobs import Job
from utils import errors
from utils.errors import warn


@dataclass
class Tally:
    """Count the photographs that are enhanced, skipped and failed, and show the progress.

    The bar shows bytes of files, which are known beforehand, unlike the photographs' pixels.
    """

    bar: tqdm
    photos: int
    counts: Counter = field(default_factory=Counter)
    bytes_per_pixel: float = 0.0  # of the photograph in work

    def start(self, job: Job, photo: Photo) -> None:
        """Say which photograph `advance` is told of from now on."""
        self.bytes_per_pixel = job.size / photo.pixels[..., 0].size

    def advance(self, pixels: float) -> None:
        """Move the bar; rounding must not push it beyond its end."""
        self.bar.update(min(pixels * self.bytes_per_pixel, self.bar.total - self.bar.n))

    def leave_out(self, job: Job) -> None:
        """Take a photograph out of what the bar has before it."""
        self.bar.total = max(self.bar.total - job.size, self.bar.n)

    def enhanced(self, job: Job, notes: Sequence[str]) -> None:
        """Count a saved photograph and say what could not be kept of it."""
        self._count("enhanced")
        for note in notes:
            warn(f"{job.source}: {note}")

    def skipped(self, job: Job) -> None:
        """Count a photograph that turns out to have a result."""
        self.leave_out(job)
        self.photos -= 1
        self._count("skipped")

    def failed(self, sentence: str) -> None:
        """Count a photograph without a result and say why."""
        self._count("failed")
        warn(f"failed: {sentence}")

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        done = self.counts["enhanced"] + self.counts["failed"]
        self.bar.set_description_str(f"{done}/{self.photos} photos")


def summary(counts: Counter) -> str:
    """Read as "3 enhanced, 0 skipped, 1 failed"."""
    return ", ".join(f"{counts[what]} {what}" for what in ("enhanced", "skipped", "failed"))


def progress_bar(jobs: Sequence[Job]) -> tqdm:
    """Make a bar of bytes, which predict the time left better than photographs do."""
    return tqdm(
        total=sum(job.size for job in jobs),
        desc=f"0/{len(jobs)} photos",
        unit="B",
        unit_scale=True,
        smoothing=0.05,  # the pace of tiles varies
        bar_format="{desc} |{bar}| {percentage:3.0f}% {rate_noinv_fmt}, {remaining} left",
        disable=not errors.shows_progress(),
    )
