"""Work of many steps: calling the scripts, and going on with what an earlier command began."""

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
