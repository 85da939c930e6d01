"""What an inference run is given: files and folders, and the photographs in them."""

import os
from pathlib import Path

import pytest

from data.inputs import find_photos
from utils.errors import UserError, WorkError


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """Makes empty files in a folder that is the present one."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return make


def found(*inputs, output="out", recursive=False):
    """The photographs and their names as results."""
    photos, names, _ = find_photos(inputs, output, recursive)
    return dict(zip(photos, names, strict=True))


def test_a_single_folder_gives_its_name_to_nothing(touch):
    touch("in/a.png", "in/sub/b.png")
    assert found("in") == {"in/a.png": "a.png"}
    for path in ("in", "in/", "./in/../in//"):
        names = found(path, recursive=True).values()
        assert list(names) == ["a.png", "sub/b.png"]
    assert list(found("in", "in/", "./in").values()) == ["a.png"]


def test_of_several_each_folder_keeps_its_name_and_files_lie_beside(touch):
    touch("in/a.png", "x/day/a.png", "c.jpg", "d/e/f.tif")
    assert found("x/day/", "in", "d/e/f.tif", "c.jpg") == {
        "x/day/a.png": "day/a.png",
        "in/a.png": "in/a.png",
        "d/e/f.tif": "f.tif",
        "c.jpg": "c.jpg",
    }


def test_the_present_folder_has_a_name(touch, tmp_path):
    touch("a.png", "in/b.png")
    assert found(".", "in") == {"./a.png": f"{tmp_path.name}/a.png", "in/b.png": "in/b.png"}


def test_a_photograph_given_twice_is_done_once_where_it_was_met_first(touch, tmp_path):
    touch("in/a.png", "in/day/b.png", "c.png")
    os.symlink("in", "link")
    once = {"in/a.png": "in/a.png", "in/day/b.png": "in/day/b.png"}
    assert found("in", "in/day", "in/a.png", recursive=True) == once
    assert found("in/day", "in", recursive=True) == {
        "in/day/b.png": "day/b.png",
        "in/a.png": "in/a.png",
    }
    assert found("in", "link", "link/a.png", f"{tmp_path}/in/day/b.png", recursive=True) == once
    assert found("c.png", "./c.png", f"{tmp_path}/c.png") == {"c.png": "c.png"}


def test_equal_names_are_refused(touch):
    touch("x/day/a.png", "y/Day/b.png", "x/c.png", "y/c.png")
    with pytest.raises(UserError, match="x/day and y/Day are both named Day, and so would be"):
        found("x/day", "y/Day")
    with pytest.raises(UserError, match=r"x/c\.png and y/c\.png are both named c\.png"):
        found("x/c.png", "y/c.png")


def test_a_wrong_path_refuses_all_and_an_empty_folder_only_itself(touch, capsys):
    touch("in/a.png", "raws/b.nef", "notes/c.txt")
    with pytest.raises(UserError, match="no file or folder at missing"):
        found("in", "missing")
    photos, _, unlisted = find_photos(["in", "raws", "notes"], "out", False)
    assert photos == ["in/a.png"] and len(unlisted) == 2
    assert "no photographs in raws but RAW ones" in unlisted[0]
    assert "no photographs in notes; it needs" in unlisted[1]
    assert capsys.readouterr().err.splitlines() == unlisted
    with pytest.raises(WorkError, match="no photographs in raws but RAW ones"):
        found("raws", "notes")


def test_other_files_are_named_with_their_folder(touch, capsys):
    touch("in/a.png", "in/b.txt", "day/c.png", "day/d.txt", "day/@eaDir/e.png")
    *_, unlisted = find_photos(["in", "day"], "out", True)
    assert not unlisted
    told = capsys.readouterr().err
    assert told == "no photographs, left alone: in/b.txt, day/@eaDir, day/d.txt\n"


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["x/a.png", "y/b.png"], "y"),
        (["x/day", "y"], "x"),  # x/day is where the results of x/day would go
        (["x/day", "y"], "link"),
        (["x/day", "y"], "y"),
    ],
)
def test_results_among_photographs_are_refused(inputs, output, touch):
    touch("x/a.png", "x/day/c.png", "y/b.png")
    os.symlink("x", "link")
    with pytest.raises(UserError, match=r"is the folder of the photographs themselves|lie in"):
        found(*inputs, output=output)


def test_results_of_earlier_runs_are_no_photographs(touch, capsys):
    touch("in/a.png", "in/out/in/a.png", "in/out/day/b.png", "day/b.png")
    assert found("in", "day", output="in/out", recursive=True) == {
        "in/a.png": "in/a.png",
        "day/b.png": "day/b.png",
    }
    assert "left alone as results: 2 in in/out" in capsys.readouterr().err
