"""Which files of a folder are photographs."""

import os
import random
import socket
from pathlib import Path

import pytest

from data.listing import list_files, list_photos
from utils.errors import UserError, WorkError


def test_listing_is_natural_and_leaves_out_what_is_no_photo(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.png", "b 1.TIF", "ä.webp", ".hidden.jpg", "notes.txt", "2/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()

    def names(recursive: bool) -> list[str]:
        found = list_photos(tmp_path, recursive)
        return [Path(path).relative_to(tmp_path).as_posix() for path in found]

    assert names(recursive=False) == ["9.png", "10.jpg", "b 1.TIF", "ä.webp"]
    assert sorted(names(recursive=True)) == ["10.jpg", "2/1.jpg", "9.png", "b 1.TIF", "ä.webp"]
    assert list_photos(tmp_path / "notes.txt") == [str(tmp_path / "notes.txt")]


def test_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    names = [
        *("2/1.png", "10/9.png", "10/10.png", "10.png", "10a.png", "a/1.png"),
        *("a0.png", "a1 2.png", "a1 10.png", "a01.png", "a1.png", "a2.png", "a٣.png"),
        *(
            "a00004.png",
            "a18446744073709551616.png",
            "a" + "9" * 200 + ".png",
            "a 1.png",
            "aa.png",
            "b.png",
        ),
    ]
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_photos(tmp_path, recursive=True)
    assert found == [f"{tmp_path}/{name}" for name in names]


def test_the_present_folder_can_be_listed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    assert list_photos(".", recursive=True) == [os.path.join(".", "", "sub/1.png")]


def test_listing_nothing_is_a_users_error(tmp_path: Path) -> None:
    for name in ("missing", "x" * 300):
        with pytest.raises(UserError, match="no file or folder"):
            list_photos(tmp_path / name)
    with pytest.raises(UserError, match="no photographs"):
        list_photos(tmp_path)


def test_a_folder_of_folders_says_where_they_count(tmp_path: Path) -> None:
    (tmp_path / "day 1").mkdir()
    with pytest.raises(UserError, match="its sub-folders are left out"):
        list_photos(tmp_path)


def test_a_folder_of_raw_photographs_is_no_users_error_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "a.nef").touch()
    with pytest.raises(WorkError, match=r"such as a\.nef: develop them first"):
        list_photos(tmp_path)


def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "1.png").touch()
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("2.png")
    os.mkfifo("3.jpg")
    (tmp_path / "4.png").symlink_to("/dev/null")
    (tmp_path / "5.png").symlink_to("nowhere")
    (tmp_path / "6.png").symlink_to("6.png")
    photos, others, unlisted = list_files(tmp_path, recursive=True)
    assert photos == [str(tmp_path / name) for name in ("1.png", "5.png", "6.png")]
    assert not others
    assert len(unlisted) == 3
    for name, sentence in zip(("2.png", "3.jpg", "4.png"), unlisted, strict=True):
        assert name in sentence and "no file" in sentence
    with pytest.raises(UserError, match=r"2\.png is no file"):
        list_photos(tmp_path)


def test_folders_of_thumbnails_are_left_alone_and_named(tmp_path: Path) -> None:
    for folder in (".", "@eaDir", ".thumbnails", "a/@eaDir"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "1.jpg").touch()
    photos, others, unlisted = list_files(tmp_path, recursive=True)
    assert photos == [str(tmp_path / "1.jpg")] and not unlisted
    assert others == [str(tmp_path / name) for name in (".thumbnails", "@eaDir", "a/@eaDir")]


def test_links_to_folders_are_followed_but_not_around(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "in" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "a" / "back").symlink_to("..")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "in")
    found = list_photos(tmp_path / "in", recursive=True)
    assert [os.path.relpath(path, tmp_path) for path in found] == ["in/a/link/1.png"]


def test_a_folder_is_listed_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "1.png").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b" / "c")
    (tmp_path / "d").symlink_to(tmp_path / "b")
    assert list_photos(tmp_path, recursive=True) == [f"{tmp_path}/b/c/1.png"]


@pytest.mark.parametrize("seed", range(20))
def test_no_tangle_of_links_is_walked_for_ever(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    folders = [tmp_path / f"{number}" for number in range(4)]
    for folder in folders:
        folder.mkdir()
        (folder / "photo.png").touch()
    for number in range(6):
        place, target = generator.choice(folders), generator.choice(folders)
        (place / f"link{number}").symlink_to(target)
    found = list_photos(tmp_path, recursive=True)
    assert {os.path.realpath(path) for path in found} == {
        str(folder / "photo.png") for folder in folders
    }
    assert len(found) == len(folders)
