"""`run.json`: what a run was made of, and with which command, for those who find its weights."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from training.record import Record
from utils import distributed
from utils.errors import warn
from utils.files import atomic_path

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm")
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 10  # seconds for git


class Origin:
    """A run's `run.json`: an entry for each time that the run was started or resumed.

    Args:
        folder: of the run.
        resumed: whether to keep the entries that are there.
    """

    def __init__(self, folder: Path, resumed: bool) -> None:
        self.file = folder / "run.json"
        self._contents = self._read() if resumed else {}

    @property
    def best_validation(self) -> dict:
        """What `write_best_validation` was last given; empty if nothing."""
        return self._contents.get("best_validation", {})

    def write_start(
        self, args: Namespace, record: Record, iteration: int, held_out: dict | None
    ) -> None:
        """Add an entry for this process.

        Args:
            args: of the script.
            record: what decides the run's result.
            iteration: of the enhancer, from which it goes on.
            held_out: the validation's `photographs`, if there is one.
        """
        photographs = {
            name: {
                "count": len(files) - len(record.left_out[name]),
                "left_out": len(record.left_out[name]),
                "names_and_sizes_sha256": fingerprint(files),
            }
            for name, files in record.photographs.items()
        }
        entry = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_iteration": iteration,
            "command": [sys.executable, *sys.argv],
            "arguments": {key: value for key, value in vars(args).items() if key != "defaults"},
            "versions": versions(),
            "git_commit": git_commit(),
            "processes": distributed.world_size(),
            "weights_sha256": record.weights,
            "photographs": photographs | {"validation": held_out},
        }
        self._write(self._contents | {"starts": [*self._contents.get("starts", []), entry]})

    def write_best_validation(self, best: dict) -> None:
        """Note the scores of `best_val.pth`, and what they were computed of."""
        self._write(self._contents | {"best_validation": best})

    def _write(self, contents: dict) -> None:
        self._contents = contents
        with atomic_path(self.file) as temporary:
            text = json.dumps(contents, indent=2, default=str)
            temporary.write_text(text + "\n", encoding="utf-8")

    def _read(self) -> dict:
        """What the file holds; nothing, with a warning, if it is damaged."""
        try:
            contents = json.loads(self.file.read_text(encoding="utf-8"))
            if (
                isinstance(contents, dict)
                and isinstance(contents.get("starts", []), list)
                and isinstance(contents.get("best_validation", {}), dict)
            ):
                return contents
        except FileNotFoundError:  # of a run that older code has begun
            return {}
        except (OSError, ValueError):
            pass
        warn(f"warning: {self.file} is damaged; it is written anew")
        return {}


def versions() -> dict[str, str | None]:
    """The versions of Python and the libraries that compute."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return found


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" behind it if files were changed; None without git."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty",
        "--exclude=*",
    ]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def fingerprint(files: Mapping[str, int]) -> str:
    """Hash names of files and their sizes in bytes; contents are not read."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
