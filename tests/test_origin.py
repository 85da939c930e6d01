"""run.json, which says where weights come from."""

import functools
import hashlib
import json
import platform
import subprocess
import sys

import pytest
import torch

import train_rave
from tests.runs import renamed
from training import origin
from training.origin import Origin, fingerprint, git_commit, versions
from utils.checkpoint import fingerprint_file
from utils.errors import UserError

LOADED = functools.cache(train_rave.load_encoders)


@pytest.fixture(autouse=True)
def encoders_loaded_once(monkeypatch):
    monkeypatch.setattr(train_rave, "load_encoders", LOADED)


def run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_rave.py", *arguments])
    return train_rave.main(train_rave.parse_arguments(arguments))


def test_a_run_says_what_it_was_made_of(tiny_run, training_folders, tmp_path, monkeypatch):
    run([*tiny_run, "--max_iters", "1"], monkeypatch)
    resumed = [*tiny_run, "--max_iters", "2", "--resume"]
    run(resumed, monkeypatch)
    contents = json.loads((tmp_path / "run" / "run.json").read_text())
    first, second = contents["starts"]
    assert (first["from_iteration"], second["from_iteration"]) == (0, 1)
    assert second["command"] == [sys.executable, "train_rave.py", *resumed]
    assert second["arguments"]["round_iters"] == 2100 and second["arguments"]["resume"] is True
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    weights = first["weights_sha256"]
    assert weights["unet_pretrain_dir"] is None and len(weights["clip_weights"]) == 64
    for name, folder in (("backlit_images_path", "backlit"), ("well_lit_images_path", "well_lit")):
        files = {path.name: path.stat().st_size for path in (training_folders / folder).iterdir()}
        assert first["photographs"][name] == {
            "count": 4,
            "left_out": 0,
            "names_and_sizes_sha256": fingerprint(files),
        }
    assert first["photographs"]["validation"] is None


def test_weights_to_start_from_are_named_by_their_contents(tiny_run, tmp_path, monkeypatch):
    run([*tiny_run, "--max_iters", "1"], monkeypatch)
    weights = tmp_path / "run" / "snapshots_model" / "final.pth"
    other = [*renamed(tiny_run, "other"), "--unet_pretrain_dir", str(weights), "--max_iters", "1"]
    run(other, monkeypatch)
    (start,) = json.loads((tmp_path / "other" / "run.json").read_text())["starts"]
    assert start["weights_sha256"]["unet_pretrain_dir"] == fingerprint_file(weights)


def test_the_fingerprint_tells_names_and_sizes():
    files = {"a.png": 1, "b.png": 2}
    assert fingerprint(files) == fingerprint(dict(reversed(files.items())))
    assert fingerprint(files) == hashlib.sha256(b'[["a.png", 1], ["b.png", 2]]').hexdigest()
    assert len({fingerprint(f) for f in (files, {"a.png": 1}, {"a.png": 2, "b.png": 1})}) == 3


def test_versions_are_those_that_compute(monkeypatch):
    assert versions()["python"] == platform.python_version()
    assert set(versions()) == {"python", "torch", "torchvision", "open_clip_torch", "timm"}
    monkeypatch.setattr(origin, "LIBRARIES", ("no-such-library",))
    assert versions()["no-such-library"] is None


def test_the_commit_is_gits(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert git_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "One"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert git_commit() == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    assert git_commit() == head.stdout.strip() + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


@pytest.mark.parametrize("damaged", ["", "[1]", '{"starts": 3}', "\0"])
def test_a_damaged_file_is_written_anew(tmp_path, damaged, capsys):
    (tmp_path / "run.json").write_text(damaged)
    assert Origin(tmp_path, resumed=True).best_validation == {}
    assert "damaged" in capsys.readouterr().err


def test_a_run_of_older_code_has_none(tmp_path, capsys):
    assert Origin(tmp_path, resumed=True).best_validation == {}
    assert not capsys.readouterr().err


def test_without_its_package_tensorboard_is_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("training.setup.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install tensorboard") as end:
        run([*tiny_run, "--tensorboard"], monkeypatch)
    assert end.value.status == 2


def test_one_folder_for_both_sides_is_refused(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tiny_run[1])
    for other in (tiny_run[1], str(tmp_path / "link")):
        with pytest.raises(UserError, match="-b and -r are the same folder") as end:
            run([*tiny_run, "-r", other], monkeypatch)
        assert end.value.status == 2


def test_tensorboard_reads_what_a_run_writes(tiny_run, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run([*tiny_run, "--max_iters", "6", "--tensorboard"], monkeypatch)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("enhancer/loss")] == [2, 3, 5]
