"""The demo: its photographs, what `make demo` runs, and the picture made of its results."""

import shutil

import numpy as np
import pytest
import skimage.data
from PIL import Image

from benchmarks import pictures
from data import demo
from data.images import read_rgb
from models.enhancer import new_enhancer
from tests.commands import ROOT, parse, record
from utils.checkpoint import save_weights
from utils.errors import UserError


@pytest.fixture
def clone(tmp_path):
    """A folder with what the Makefile needs and an empty demo/input, like a fresh clone."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "demo" / "input").mkdir(parents=True)
    (tmp_path / "demo" / "input" / ".gitkeep").touch()
    return tmp_path


@pytest.fixture
def small_photos(monkeypatch):
    """The demo's photographs, reduced to run in no time."""
    for name in demo.BACKLIGHT_SEEDS:
        small = getattr(skimage.data, name)()[::8, ::8]
        monkeypatch.setattr(skimage.data, name, lambda small=small: small)


def make_demo(clone, *variables, **environment):
    """Run `make demo` as after an installation, with a `python` that only records."""
    stubs = clone / "stubs"
    command = ["make", "-o", ".venv/installed", "demo", f"BIN={stubs}", *variables]
    return record(command, clone, stubs, **environment)


def test_photographs_are_dark_and_come_with_their_originals(tmp_path):
    demo.main(demo.parse_arguments([str(tmp_path)]))
    for name in demo.BACKLIGHT_SEEDS:
        original = demo.photograph(name)
        backlit = read_rgb(tmp_path / "backlit" / f"{name}.png")
        assert np.array_equal(read_rgb(tmp_path / "gt" / f"{name}.png"), original)
        assert backlit.mean() < 0.8 * original.mean()
        ratio = (backlit[original > 100] / original[original > 100]).ravel()
        dark, bright = np.quantile(ratio, [0.1, 0.9])
        assert dark < 0.5 and bright > 1.3 * dark  # no global darkening


def test_same_photographs_every_time(tmp_path, small_photos):
    for run in ("one", "two", "two"):  # once over its own
        demo.main(demo.parse_arguments([str(tmp_path / run)]))
    for path in (tmp_path / "one").rglob("*.png"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()


def test_make_demo_installs_first(clone):
    done, _ = record(["make", "-n", "demo"], clone, clone / "stubs")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "-m venv .venv" in lines[0]


def test_make_demo_from_photographs_to_report(clone, small_photos, empty_hub, monkeypatch, capsys):
    weights = clone / "some weights.pth"
    save_weights(new_enhancer(0.8), weights)
    Image.new("RGB", (20, 20), "navy").save(clone / "demo" / "input" / "mine.jpg")
    done, calls = make_demo(clone, f"MODEL={weights}")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(clone)
    for _ in range(2):  # again over its own results
        for call in calls:
            module, args = parse(call)
            assert not module.main(args)
    output = clone / "demo" / "output"
    names = {f"{name}.png" for name in demo.BACKLIGHT_SEEDS}
    assert {path.name for path in (output / "enhanced").iterdir()} == names
    assert [path.name for path in (output / "yours").iterdir()] == ["mine.png"]
    for strength, name in ((0.5, "strength_0.5"), (1.5, "strength_1.5")):
        light = [read_rgb(output / folder / "coffee.png").mean() for folder in ("enhanced", name)]
        assert (light[0] - light[1]) * (1 - strength) > 0
    with Image.open(output / "strengths.jpg") as picture:
        assert picture.height == 4 * (pictures.HEIGHT + pictures.GAP)
    assert "demo/output/strengths.jpg" in done.stdout
    assert "astronaut" in (output / "report.html").read_text(encoding="utf-8")
    assert "PSNR" in capsys.readouterr().out
    assert "open demo/output/report.html" in done.stdout.splitlines()[-1]


def test_make_demo_without_photographs_of_the_user(clone):
    done, calls = make_demo(clone)
    assert [call[:2] for call in calls] == [
        ["-m", "data.demo"],
        ["inference.py", "--input"],
        ["compute_metrics.py", "--gt_images_path"],
        ["inference.py", "--input"],
        ["inference.py", "--input"],
        ["-m", "benchmarks.pictures"],
    ]
    assert "--unet_pretrain_dir" not in calls[1]  # the default
    assert "into demo/input" in done.stdout


def test_a_failing_photograph_of_the_user_decides_the_status(clone):
    (clone / "demo" / "input" / "broken.jpg").touch()
    done, calls = make_demo(clone, FAILING="*demo/input*")
    assert done.returncode != 0 and len(calls) == 7
    assert "report.html" in done.stdout.splitlines()[-1]


def test_an_earlier_failure_ends_the_demo(clone):
    done, calls = make_demo(clone, FAILING="compute_metrics*")
    assert done.returncode != 0 and len(calls) == 3
    assert "report.html in a browser" not in done.stdout


def test_picture_of_all_three_versions(tmp_path, small_photos, capsys):
    demo.main(demo.parse_arguments([str(tmp_path)]))
    picture = tmp_path / "docs" / "picture.jpg"
    args = pictures.parse_arguments([str(picture), "--photos", str(tmp_path)])
    with pytest.raises(UserError, match="enhanced"):
        pictures.main(args)
    shutil.copytree(tmp_path / "backlit", tmp_path / "enhanced")
    Image.new("RGB", (9, 9)).save(tmp_path / "enhanced" / "more.png")
    with Image.open(tmp_path / "gt" / "coffee.png") as photo:
        photo.resize((333, 223)).save(tmp_path / "gt" / "coffee.png")
    pictures.main(args)
    with Image.open(picture) as image:
        assert image.format == "JPEG" and image.width > 4 * pictures.HEIGHT
        assert image.height == 3 * (pictures.HEIGHT + pictures.GAP)
        pixels = np.asarray(image, float)
    backlit, enhanced, original = np.split(pixels[:, pictures.LABEL :], 3)
    assert np.abs(backlit - enhanced).mean() < 2 < np.abs(backlit - original).mean()
    (tmp_path / "enhanced" / "coffee.png").unlink()
    with pytest.raises(UserError, match="lacks coffee"):
        pictures.main(args)
