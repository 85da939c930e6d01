"""Work of many steps, which calls the scripts as a user does and goes on where it was ended."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import UserError, WorkError
from utils.files import atomic_path, require_writable
from utils.signals import hold_signals

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 80  # characters of a setting in an error
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def call(script: str, command: Sequence[str], processes: int = 1) -> int:
    """Run one of the scripts as a user does, and wait for it; return its exit status.

    Of several processes that is torchrun's: 0, or 1 whatever went wrong.

    Args:
        script: its file below the repository's root.
        command: its arguments; paths are those of the present folder.
        processes: that share its work, by torchrun if more than one.

    Raises:
        KeyboardInterrupt: a signal came; the script was told to end, too, and keeps what it has.
        WorkError: a signal ended it alone.
    """
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else []
    process = subprocess.Popen([sys.executable, *launcher, str(ROOT / script), *command])
    try:
        status = process.wait()
    except KeyboardInterrupt as error:
        hold_signals()
        process.terminate()
        process.wait()
        error.remedy = "this command goes on when it is given again as it was"
        raise
    if status < 0 or status > 128:
        raise WorkError(f"{script} was ended by a signal (status {status})")
    return status


def keep_settings(settings: Mapping[str, object], file: Path, names: Sequence[str]) -> None:
    """Write down what results depend on, or compare it with what an earlier command had.

    Args:
        settings: by the options' names, of values that JSON can hold; all checks should be behind.
        file: in the folder of the results, which is made.
        names: that results will have in the folder; nothing else may have one of them.

    Raises:
        UserError: it had something else; a name is taken; the folder cannot be written.
    """
    settings = json.loads(json.dumps(settings))  # as they will be read
    if file.is_file():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged; choose another folder") from error
        for name, value in settings.items():
            if before.get(name) != value:
                was = textwrap.shorten(str(before.get(name)), LONGEST)
                raise UserError(
                    f"{file.parent} was begun with another {name}, {was}; give the same or choose "
                    "another folder"
                )
        return
    if taken := [name for name in names if (file.parent / name).exists()]:
        raise UserError(f"{file.parent / taken[0]} is something else; choose a new folder")
    require_writable(file.parent, "folder")
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
