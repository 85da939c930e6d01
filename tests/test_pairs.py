from pathlib import Path

import pytest

from data.pairs import abridged, counted, match_images
from tests.growth import MANY, assert_linear
from utils.errors import UserError, printable

GT, ENHANCED = Path("gt"), Path("enhanced")


def match(gt: list[str], enhanced: list[str]):
    return match_images(
        [f"gt/{name}" for name in gt], [f"enhanced/{name}" for name in enhanced], GT, ENHANCED
    )


def test_extension_and_case_do_not_matter():
    matching = match(["A.png", "b.v2.JPG", "c.png"], ["b.V2.webp", "a.jpg", "d.png"])
    assert [(pair.name, pair.enhanced) for pair in matching.pairs] == [
        ("A", "enhanced/a.jpg"),
        ("b.v2", "enhanced/b.V2.webp"),
    ]
    assert matching.leftovers["gt"] == ["gt/c.png"]
    assert matching.leftovers["enhanced"] == ["enhanced/d.png"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("CAF\u00c9", "cafe\u0301"),
        ("stra\u00dfe", "STRASSE"),
        ("\u01f0\u0323", "J\u030c\u0323"),  # folding gives letters that compose anew
        ("\ud55c", "\u1112\u1161\u11ab"),
    ],
)
def test_case_and_accents_match_however_they_are_coded(one, other):
    assert match([f"{one}.png"], [f"{other}.jpg"]).pairs
    assert match([f"{other}.png"], [f"{one}.jpg"]).pairs


def test_folders_below_are_part_of_the_name():
    matching = match(["x/1.png", "y/1.png", "2.png"], ["y/1.png", "x/1.jpg", "x/2.png"])
    assert [(pair.name, pair.enhanced) for pair in matching.pairs] == [
        ("x/1", "enhanced/x/1.jpg"),
        ("y/1", "enhanced/y/1.png"),
    ]
    assert matching.leftovers["enhanced"] == ["enhanced/x/2.png"]


def test_the_present_folder_is_a_root():
    gt, enhanced = ["./a.b/1.png"], ["out/a.b/1.jpg", "out/1.jpg"]  # as they are listed
    matching = match_images(gt, enhanced, Path("."), Path("out"))
    assert [(pair.name, pair.enhanced) for pair in matching.pairs] == [("a.b/1", enhanced[0])]


@pytest.mark.parametrize("start", ["IMG", "caf\u00e9"])
def test_matching_grows_no_faster_than_the_folders(start):
    gt, enhanced = (
        [f"{folder}/{start}_{k:06d}.{suffix}" for k in range(MANY)]
        for folder, suffix in (("gt", "png"), ("enhanced", "jpg"))
    )

    def matched(count):
        assert len(match_images(gt[:count], enhanced[:count], GT, ENHANCED).pairs) == count

    assert_linear(matched)


def test_first_of_numbered_names_stands_for_the_image():
    matching = match(
        ["0152.png", "7(2).png", "9.png"],
        ["0152(1).jpg", "0152(2).jpg", "0152(10).jpg", "7(2).jpg", "8(2).jpg", "9 (1).jpg"],
    )
    assert [(pair.name, pair.enhanced) for pair in matching.pairs] == [
        ("0152", "enhanced/0152(1).jpg"),
        ("7(2)", "enhanced/7(2).jpg"),
    ]
    assert matching.leftovers["set_aside"] == [
        "enhanced/0152(2).jpg",
        "enhanced/0152(10).jpg",
    ]
    assert matching.leftovers["enhanced"] == ["enhanced/8(2).jpg", "enhanced/9 (1).jpg"]


@pytest.mark.parametrize(
    ("gt", "enhanced", "named"),
    [
        (["1.png"], ["1.png", "1.jpg"], "enhanced/1.png and enhanced/1.jpg"),
        (["1.png", "1.JPG"], ["1.png"], "gt/1.png and gt/1.JPG"),
        (["1.png"], ["1.bmp", "1.png", "1.jpg"], "1.bmp and enhanced/1.png and enhanced/1.jpg"),
        (["1.png"], ["1.png", "1(1).png"], r"enhanced/1.png and enhanced/1\(1\).png"),
    ],
)
def test_several_candidates_are_named(gt, enhanced, named):
    with pytest.raises(UserError, match=f"several candidates.*{named}"):
        match(gt, enhanced)


def test_doubles_that_nothing_belongs_to_are_only_leftovers():
    matching = match(["1.png", "2.png", "2.jpg"], ["1.png"])
    assert len(matching.pairs) == 1 and len(matching.leftovers["gt"]) == 2


def test_no_pair_is_an_error():
    with pytest.raises(
        UserError, match=r"no image of enhanced belongs to one of gt.*b\.png.*a\.png"
    ):
        match(["a.png"], ["b.png"])


def test_single_files_are_named_by_their_stem(tmp_path):
    gt, enhanced = tmp_path / "gt" / "1.png", tmp_path / "out" / "1.jpg"
    for path in (gt, enhanced):
        path.parent.mkdir()
        path.touch()
    assert match_images([str(gt)], [str(enhanced)], gt, enhanced).pairs[0].name == "1"


def test_long_lists_are_abridged():
    assert abridged("abc", 3) == "a, b, c"
    assert abridged("abcde", 3) == "a, b, c and 2 more"
    assert [counted(number, "pair") for number in range(3)] == ["0 pairs", "1 pair", "2 pairs"]


def test_names_do_nothing_to_a_terminal():
    assert printable("é ü 日本.png") == "é ü 日本.png"
    assert abridged(["a\nb", "\x1b[2J", "\udce9"]) == r"a\nb, \x1b[2J, \udce9"
    with pytest.raises(UserError, match=r"x\\x07\.png"):
        match(["a.png"], ["x\a.png"])
