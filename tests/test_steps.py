"""Work of many steps: calling the scripts, and going on with what an earlier command began."""

import subprocess
import time

import pytest

from utils import steps
from utils.errors import UserError, WorkError


def test_a_call_is_a_users(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("import sys; sys.exit(len(sys.argv))")
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    assert steps.call("script.py", ["a", "b"]) == 3
    (tmp_path / "script.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(WorkError, match="ended by a signal"):
        steps.call("script.py", [])


def test_a_call_is_shared_by_processes(tmp_path, monkeypatch):
    words = "import os, pathlib, sys; pathlib.Path(sys.argv[1] + os.environ['RANK']).touch()"
    (tmp_path / "script.py").write_text(words)
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    assert steps.call("script.py", [str(tmp_path / "rank")], 2) == 0
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank0", "rank1"]
    (tmp_path / "script.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert steps.call("script.py", [], 3) == 1


def test_a_signal_reaches_all_processes_of_a_call(tmp_path, monkeypatch):
    words = [
        "import os, pathlib, signal, sys, time",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))",
        "rank = sys.argv[1] + os.environ['RANK']",
        "pathlib.Path(rank).touch()",
        "try: time.sleep(60)",
        "finally: pathlib.Path(rank + 'end').touch()",
    ]
    (tmp_path / "script.py").write_text("\n".join(words))
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    real = subprocess.Popen.wait

    def wait(process, *args, **kwargs):
        """Wait as before, but at first only until both work, and a signal comes."""
        monkeypatch.setattr(subprocess.Popen, "wait", real)
        while len(list(tmp_path.glob("rank*"))) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        steps.call("script.py", [str(tmp_path / "rank")], 2)
    assert len(list(tmp_path.glob("rank?end"))) == 2


def test_other_settings_are_refused(tmp_path):
    file, settings = tmp_path / "new" / "work.json", {"data": "here", "sizes": (1, 2)}
    steps.keep_settings(settings, file, ["a"])
    steps.keep_settings(settings, file, ["a"])
    for other in ({"data": "there"}, {"sizes": [1]}, {"more": 1}):
        with pytest.raises(UserError, match=f"begun with another {next(iter(other))}, "):
            steps.keep_settings(settings | other, file, ["a"])
    file.write_text("[")
    with pytest.raises(UserError, match="damaged"):
        steps.keep_settings(settings, file, ["a"])


def test_a_name_that_is_taken_is_refused(tmp_path):
    (tmp_path / "notes").touch()
    (tmp_path / "table").touch()
    with pytest.raises(UserError, match="table is something else"):
        steps.keep_settings({}, tmp_path / "work.json", ["runs", "table"])
    steps.keep_settings({}, tmp_path / "work.json", ["runs"])
    steps.keep_settings({}, tmp_path / "work.json", ["runs", "table"])  # by now it may be a result
