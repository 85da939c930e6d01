"""Commands as users type them: found in documents, recorded from make, run within this process."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
RECORDER = """#!/bin/sh
printf '%s\\n' "$@" '' >> "$RECORD"
case "$*" in ${FAILING:-none}) exit 1 ;; esac
"""


def bash_commands(text):
    """The commands of all ```bash blocks of a Markdown text, each as one line."""
    blocks = re.findall(r"^([ \t]*)```bash\b[^\n]*\n(.*?)^\1```[ \t]*$", text, re.M | re.S)
    lines = "\n".join(block for _, block in blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if shlex.split(line, comments=True)]


def words_of(command):
    """The words of one plain command, without its comment and variables.

    Raises:
        ValueError: it is more than that; nobody knows how to test it.
    """
    words = shlex.split(command, comments=True)
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    operators = shlex.shlex(command, posix=True, punctuation_chars=True)
    operators.whitespace_split = True
    if any(set(word) <= set("|&;<>()") for word in operators):
        raise ValueError(f"only plain commands, one a line, can be tested: {command}")
    return words


def parse(arguments):
    """Let a script of ours read its command line.

    Args:
        arguments: what follows `python`: ["train.py", ...] or ["-m", "data.demo", ...].

    Returns:
        The script's module and its arguments; None for --help.

    Raises:
        ValueError: there is no such script, or it refuses the arguments.
    """
    if arguments[0] == "-m":
        name, rest = arguments[1], arguments[2:]
        path = ROOT / f"{name.replace('.', '/')}.py"
    else:
        path, rest = ROOT / arguments[0], arguments[1:]
        name = ".".join(Path(arguments[0]).with_suffix("").parts)
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    module = importlib.import_module(name)
    said = io.StringIO()
    try:
        with patch.object(sys, "argv", [str(path), *rest]), contextlib.redirect_stderr(said):
            return module, module.parse_arguments()
    except SystemExit as end:
        if end.code == 0:
            return module, None
        raise ValueError(f"{arguments}: {said.getvalue()}") from end


def help_of(script):
    """What a script says to --help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        parse([script, "--help"])
    return said.getvalue()


def record(command, cwd, stubs, **variables):
    """Run a command whose `python` only records what it is asked for.

    Args:
        command: its words.
        cwd: where.
        stubs: a folder for that `python`.
        variables: of the environment, besides; a `python` whose arguments match FAILING fails.

    Returns:
        The completed process, and what followed `python` at each call.
    """
    stubs.mkdir(exist_ok=True)
    (stubs / "python").write_text(RECORDER)
    (stubs / "python").chmod(0o755)
    calls = stubs / "calls"
    calls.write_text("")
    path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
    # A `make test` that runs the tests has told its own options to every `make` below it:
    outer = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    environment = {**outer, "PATH": path, "RECORD": str(calls), **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done, [call.split("\n") for call in calls.read_text().split("\n\n")[:-1]]
