"""A run's log.csv: a line for each display."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from utils.files import atomic_path

LOG_COLUMNS = (
    "iteration",
    "stage",
    "round",
    "stage_iteration",
    "loss",
    "guidance",
    "identity",
    "psnr",
    "learning_rate",
    "seconds",
    "p_backlit",  # of the enhanced images, their mean, in rounds whose guidance has one
    "val_psnr",
    "val_ssim",
)


class Log:
    """The log of a run, in its folder.

    Args:
        file: log.csv; it may be there from an earlier process.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._trimmed = False

    def append(self, row: Mapping[str, object], rows_before: int) -> None:
        """Append a line.

        Args:
            row: values of `LOG_COLUMNS`; those left out stay empty.
            rows_before: lines that the run has written; what an earlier process wrote beyond them,
                and no saved state knows of, is dropped once.
        """
        if not self._trimmed:
            self._trim(rows_before)
        with self.file.open("a", newline="") as stream:
            self._writer(stream).writerow(row)

    def rows(self, number: int) -> list[dict[str, str]]:
        """The first lines, by their columns."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        return list(csv.DictReader(lines[: number + 1], restval=""))

    def _trim(self, number: int) -> None:
        """Keep so many lines; those of an older version of this code get the newer columns."""
        kept = self.rows(number)
        with atomic_path(self.file) as temporary, temporary.open("w", newline="") as stream:
            writer = self._writer(stream)
            writer.writeheader()
            writer.writerows(kept)
        self._trimmed = True

    @staticmethod
    def _writer(stream: TextIO) -> csv.DictWriter:
        return csv.DictWriter(stream, LOG_COLUMNS, lineterminator="\n", extrasaction="ignore")
