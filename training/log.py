"""A run's log.csv: a line for each display."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

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
            csv.DictWriter(stream, LOG_COLUMNS, lineterminator="\n").writerow(row)

    def _trim(self, rows: int) -> None:
        lines = self.file.read_text().splitlines(keepends=True) if self.file.is_file() else []
        lines = lines[: rows + 1] or [",".join(LOG_COLUMNS) + "\n"]
        with atomic_path(self.file) as temporary:
            temporary.write_text("".join(lines))
        self._trimmed = True
