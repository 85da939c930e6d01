"""How the results of photographs are named."""

import re

import pytest

from data.result_names import choose_suffix, name_in_folder, name_results


@pytest.mark.parametrize(
    ("name", "kind", "alpha", "suffix", "note"),
    [
        ("a.webp", "png", True, ".png", ""),
        ("a.TIF", "same", True, ".TIF", ""),
        ("a.JPG", "same", False, ".JPG", ""),
        ("a.png", "jpg", False, ".jpg", ""),
        ("a.png", "jpg", True, ".png", "saved as png, since .jpg cannot hold its alpha"),
        ("a.bmp", "same", True, ".png", "saved as png, since .bmp cannot hold its alpha"),
        ("a.gif", "same", False, ".png", "saved as png, since .gif files are not written"),
        ("a.HEIC", "same", False, ".jpg", "saved as jpg, since .HEIC files are not written"),
        ("a.avif", "same", False, ".jpg", "saved as jpg, since .avif files are not written"),
        ("a.heic", "same", True, ".png", "saved as png, since .heic files are not written"),
        ("a.heif", "png", False, ".png", ""),
        ("a", "same", False, ".png", "saved as png, since nameless files are not written"),
    ],
)
def test_suffixes(name: str, kind: str, alpha: bool, suffix: str, note: str) -> None:
    assert choose_suffix(name, kind, alpha) == (suffix, (note,) if note else ())


def test_names_do_not_depend_on_the_order() -> None:
    photos = ["a.jpg", "a.tif", "a.jpg.bmp", "sub/a.jpg", "c", "x.y.jpg"]
    names = name_results(photos, [".png"] * len(photos))
    assert names[1:] == ["a.tif.png", "a.jpg.bmp.png", "sub/a.png", "c.png", "x.y.png"]
    assert re.fullmatch(r"a\.jpg\.[0-9a-f]{8}\.png", names[0])
    assert name_results(photos[::-1], [".png"] * len(photos)) == names[::-1]


def test_taken_names_are_avoided() -> None:
    taken = ["A.png", "b.png", "b.bmp.png"]
    first, second, third = name_results(["a.bmp", "b.bmp", "c.bmp"], [".png"] * 3, taken)
    assert (first, third) == ("a.bmp.png", "c.png")
    assert re.fullmatch(r"b\.bmp\.[0-9a-f]{8}\.png", second)


def test_an_ending_follows_the_stem_however_it_is_made() -> None:
    photos = ["a.jpg", "a.tif", "sub/b.jpg", "c_new.png"]
    results, pngs = name_in_folder(photos, "out", "same", "_new")
    assert results == ["out/a_new.jpg", "out/a_new.tif", "out/sub/b_new.jpg", "out/c_new_new.png"]
    assert pngs == ["out/a_new.png", None, "out/sub/b_new.png", None]
    results, _ = name_in_folder(photos, "out", "png", "_new")
    assert results[:2] == ["out/a.jpg_new.png", "out/a.tif_new.png"]


@pytest.mark.parametrize("letter", ["x", "ä", "\U0001f305"])
@pytest.mark.parametrize("tail", ["", "_new", 100 * "y"])
def test_no_name_is_too_long(letter: str, tail: str) -> None:
    stem = letter * (251 // len(letter.encode()))
    names, _ = name_in_folder([f"{stem}.jpg", f"{stem}.tif"], "out", "same", tail)
    assert len(set(names)) == 2
    for name, suffix in zip(names, (".jpg", ".tif"), strict=True):
        assert len(name.removeprefix("out/").encode()) <= 255 and name.endswith(f"{tail}{suffix}")
