"""Enhancing folders of photographs, as a user does."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

import inference
from data import png
from data.images import read_photo
from data.jobs import plan
from data.listing import list_photos
from data.result_names import name_in_folder
from models.enhancer import UNetEnhancer, new_enhancer
from tests.forks import Forks, group_ends, members
from tests.heif import ALPHA, heic
from tests.runs import signals_answered
from utils.checkpoint import save_weights
from utils.errors import UserError
from utils.signals import reset_signals

ROOT = Path(__file__).resolve().parents[1]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose light map is 0.5 everywhere: every photograph gets twice as light."""
    enhancer = UNetEnhancer()
    with torch.no_grad():
        enhancer.cond_add1.weight.zero_()
        enhancer.cond_add1.bias.fill_(0.5)
    path = tmp_path_factory.mktemp("weights") / "half.pth"
    save_weights(enhancer, path)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Photographs as small as these are slower on several threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photo(path: Path, height: int = 12, width: int = 16, **options: object) -> np.ndarray:
    """Save dark noise; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 100, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "inference.py"), *map(str, arguments)]


def run(*arguments: object) -> int:
    """Run `main` in this process on a command line; a UserError passes through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inference.py", *map(str, arguments)])
        return inference.main(inference.parse_arguments())


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# In this process


def test_all_kinds_of_photographs_are_enhanced(tmp_path: Path, weights: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    doubled = {
        f"{kind}.png": photo(source / f"{kind}.{kind}") * 2 for kind in ("bmp", "tif", "png", "gif")
    }
    del doubled["gif.png"]  # dithered
    photo(source / "grey 1.jpg")
    Image.open(source / "grey 1.jpg").convert("L").save(source / "grey 1.jpg", icc_profile=ICC)
    sixteen_bit = np.random.default_rng(0).integers(0, 32768, (12, 16, 4)).astype(np.uint16)
    (source / "sixteen bits ä.png").write_bytes(imagecodecs.png_encode(sixteen_bit))

    assert run("-i", source, "-o", output, "-c", weights) == 0
    assert files(output) == sorted([*doubled, "gif.png", "grey 1.png", "sixteen bits ä.png"])
    for name, pixels in doubled.items():
        assert (read_photo(output / name).pixels == pixels).all(), name
    grey = read_photo(output / "grey 1.png")
    assert grey.pixels.shape == (12, 16, 1)
    assert grey.icc_profile == ICC
    assert (grey.pixels == read_photo(source / "grey 1.jpg").pixels * 2).all()
    enhanced = read_photo(output / "sixteen bits ä.png")
    assert enhanced.pixels.dtype == np.uint16
    assert np.abs(enhanced.pixels - sixteen_bit[..., :3] * 2.0).max() <= 1
    assert (enhanced.alpha == sixteen_bit[..., 3]).all()


def test_raw_photographs_have_to_be_developed(tmp_path: Path, weights: Path, capfd) -> None:
    source = tmp_path / "in"
    photo(source / "a.jpg")
    for name in ("a.nef", "b.CR2"):
        (source / name).write_bytes(b"II*\0raw")
    how = ("-o", tmp_path / "out", "-c", weights)
    assert run("-i", source, *how) == 1
    told = capfd.readouterr().err
    assert "b.CR2 is a RAW photograph: develop it first" in told
    assert "left alone: a.nef\n" in told
    assert files(tmp_path / "out") == ["a.png"]
    assert run("-i", source / "a.nef", *how) == 1  # asked for alone
    assert "a.nef is a RAW photograph" in capfd.readouterr().err
    photo(source / "b.png")
    assert run("-i", source, *how) == 0


def test_jpegs_are_made_of_heic(tmp_path: Path, weights: Path, capfd) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.heic").write_bytes(heic(turn=1))
    (source / "b.HEIC").write_bytes(heic(auxiliary=ALPHA))
    assert run("-i", source, "-o", output, "-c", weights, "--format", "same") == 0
    assert files(output) == ["a.jpg", "b.png"]
    assert "a.heic: saved as jpg, since .heic files are not written" in capfd.readouterr().err
    with Image.open(output / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (64, 128))


@pytest.mark.parametrize("scale", [1, 0.5])
def test_weights_that_overflow_fail_each_photograph(tmp_path, scale, capfd) -> None:
    enhancer = UNetEnhancer()
    for parameter in enhancer.parameters():
        parameter.data.fill_(1e38)
    save_weights(enhancer, tmp_path / "huge.pth")
    photo(tmp_path / "in" / "a.png", 40, 50)
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-c", tmp_path / "huge.pth"]
    assert run(*arguments, "--light_map_scale", scale) == 1
    assert "a.png: the weights give no finite light map" in capfd.readouterr().err
    assert not files(tmp_path / "out")


def test_fast_light_map_and_tiles_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_light_map, tiles, results = inference.photo_light_map, [], []

    def recording(*photograph: object, **how: object) -> torch.Tensor:
        tiles.append(how["tile"])
        return photo_light_map(*photograph, **how)

    monkeypatch.setattr(inference, "photo_light_map", recording)
    torch.manual_seed(0)
    save_weights(new_enhancer(0.5), tmp_path / "uneven.pth")
    photo(tmp_path / "in" / "a.png", 40, 50)
    for extra in ((), ("--tile", 16), ("--tile", 0), ("--light_map_scale", 0.5)):
        arguments = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", tmp_path / "uneven.pth")
        assert run(*arguments, *extra) == 0
        results.append(read_photo(tmp_path / "out" / "a.png").pixels.astype(int))
    assert tiles == [None, 16, 0]
    *others, fast = (np.abs(result - results[0]) for result in results[1:])
    assert max(other.max() for other in others) <= 1
    assert fast.max() > 5 and fast.mean() < 5


def lightened(pixels: np.ndarray, strength: float) -> np.ndarray:
    """What the weights of light map 0.5 make of pixels, in closed form."""
    peak = np.iinfo(pixels.dtype).max
    return np.rint((pixels / (0.5**strength + 1e-9)).clip(0, peak))


@pytest.mark.parametrize("strength", [0, 0.7, 1, 2, 3])
def test_a_strength_is_the_light_maps_power(
    tmp_path: Path, weights: Path, strength: float, capsys: pytest.CaptureFixture
) -> None:
    pixels = photo(tmp_path / "in" / "a.png")
    deep = np.random.default_rng(0).integers(0, 65536, (12, 16, 4)).astype(np.uint16)
    (tmp_path / "in" / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "in" / "grey.png")
    for extra in ((), ("--light_map_scale", 0.5), ("--tile", 5)):
        arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights]
        assert run(*arguments, "--strength", strength, *extra) == 0
        results = {name: read_photo(tmp_path / "out" / name) for name in files(tmp_path / "out")}
        for name, before, unit in (("a", pixels, 1), ("grey", pixels[..., :1], 1)):
            off = np.abs(results[f"{name}.png"].pixels - lightened(before, strength))
            assert off.max() <= (unit if strength == 0.7 else 0), name  # near a tie
        off = np.abs(results["deep.png"].pixels - lightened(deep[..., :3], strength))
        assert off.max() <= 1 and (strength or not off.any())
        assert (results["deep.png"].alpha == deep[..., 3]).all()
    assert "lightened" not in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1, 0.5])
def test_auto_exposure_lightens_and_says_how(
    tmp_path: Path, weights: Path, scale: float, capsys: pytest.CaptureFixture
) -> None:
    greys = {"black": 0, "dark": 25, "dim": 50, "good": 100}
    for name, grey in greys.items():
        Image.new("L", (40, 30), grey).save(tmp_path / f"{name}.png")
    Image.new("RGBA", (40, 30), (50, 50, 50, 7)).save(tmp_path / "veiled.png")
    sources = sorted(tmp_path.glob("*.png"))
    arguments = ["-i", *sources, "-o", tmp_path / "out", "-c", weights, "--light_map_scale", scale]
    # The weights' light map is 0.5; ln 0.5 / ln(100 / 255) = 0.7404:
    dim = {"dark": "0.6", "dim": "0.74", "veiled": "0.74"}
    bare = {"dark": "0.6", "dim": "0.6", "good": "0.74", "veiled": "0.6"}
    for strength, expected in ((1, dim), (0, bare)):
        assert run(*arguments, "--auto_exposure", "--strength", strength) == 0
        told = re.findall(
            r"(\w+)\.png: lightened by auto exposure, gamma (\S+)", capsys.readouterr().err
        )
        assert dict(told) == expected
        for name, grey in {**greys, "veiled": 50}.items():
            result = read_photo(tmp_path / "out" / f"{name}.png")
            exact = 255 * (grey * 2**strength / 255) ** float(expected.get(name, 1))
            assert np.unique(result.pixels) == np.rint(exact)
            assert (result.alpha == 7).all() if name == "veiled" else result.alpha is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *(("-0.1", "of at least 0"), ("3.01", "of at most 3")),
        *(("nan", "a number"), ("auto", "a number")),
    ],
)
def test_strengths_out_of_range_are_refused(text: str, sentence: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("-i", "in", "-o", "out", f"--strength={text}")
    assert sentence in capsys.readouterr().err


def test_one_file_can_have_a_file_as_its_result(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(Path("a.png"))
    photo(Path("b.jpg"))
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save("alpha.png")
    how = ("-c", weights)
    for output, kind in {
        "b.jpg": "JPEG",
        "a.jpeg": "JPEG",
        "a.TIF": "TIFF",
        "new/a.webp": "WEBP",
        f"{tmp_path}/c.png": "PNG",
    }.items():
        assert run("-i", "a.png", "-o", output, *how) == 0
        assert Image.open(output).format == kind
    before = Path("b.jpg").stat().st_mtime_ns
    assert run("-i", "a.png", "-o", "b.jpg", "--skip_existing", *how) == 0
    assert "0 enhanced, 1 skipped" in capsys.readouterr().out
    assert Path("b.jpg").stat().st_mtime_ns == before
    # One with alpha becomes a PNG, but no file that the command does not name is replaced:
    for output in ("alpha.jpg", "a.jpg"):
        before = Path("a.png").read_bytes()
        assert run("-i", "alpha.png", "-o", output, *how) == 0
        assert not Path(output).exists() and Image.open(f"{output}.png").mode == "RGBA"
        assert Path("a.png").read_bytes() == before
        assert "saved as png, since .jpg cannot hold its alpha" in capsys.readouterr().err
    # A folder is one that is there, or ends like one:
    Path("there.v1").mkdir()
    for output in ("there.v1", "results.v2/"):
        assert run("-i", "a.png", "-o", output, *how) == 0
        assert files(Path(output)) == ["a.png"]
    assert run("-i", "a.png", "-o", "results.v2//", "--skip_existing", *how) == 0
    assert "0 enhanced, 1 skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="would replace the photograph"):
        run("-i", "b.jpg", "-o", "results.v2/../b.jpg", *how)
    assert run("-i", "a.png", "-o", "d.jpg", "--format", "jpg", *how) == 0
    assert run("-i", "b.jpg", "-o", "d.jpeg", "--format", "same", *how) == 0
    for asked in (("--format", "png"), ("--format", "same")):
        with pytest.raises(UserError, match=f"{asked[1]} contradicts --output e.jpg"):
            run("-i", "a.png", "-o", "e.jpg", *asked, *how)
    with pytest.raises(UserError, match="--suffix is for results in a folder"):
        run("-i", "a.png", "-o", "e.jpg", "--suffix", "_new", *how)
    assert not Path("e.jpg").exists()


def test_several_inputs_make_one_folder(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "x/day 1/b.png", "x/day 1/sub/c.png", "day 2/b.png", "raws/d.nef"):
        photo(Path(name).with_suffix(".png")).tofile(name) if "raws" in name else photo(Path(name))
    Path("raws/d.png").unlink()
    inputs = ("-i", "a.jpg", "./a.jpg", "x/day 1", "x/day 1/b.png", "-i", "day 2/", "raws")
    assert run(*inputs, "-o", "out", "-c", weights) == 1
    assert files(Path("out")) == ["a.png", "day 1/b.png", "day 2/b.png"]
    out, err = capsys.readouterr()
    assert out == "3 enhanced, 0 skipped, 0 failed\n"
    assert "no photographs in raws but RAW ones, such as d.nef" in err
    inputs = ("-i", "x", "x/day 1", "--recursive", "--suffix", "_new", "--format", "jpg")
    assert run(*inputs, "-o", "out2", "-c", weights) == 0
    assert files(Path("out2")) == ["x/day 1/b_new.jpg", "x/day 1/sub/c_new.jpg"]


@pytest.mark.parametrize("text", ["a/b", "/", "..\\a", "x" * 101])
def test_a_suffix_is_part_of_a_name(text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("-i", "in", "-o", "out", "--suffix", text)
    assert "argument --suffix: expected" in capsys.readouterr().err


def test_formats(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "in"
    for name in ("a.JPG", "b.webp", "c.tiff", "d.bmp", "e.gif"):
        photo(source / name)
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save(source / "f.png")
    assert run("-i", source, "-o", tmp_path / "same", "-c", weights, "--format", "same") == 0
    assert files(tmp_path / "same") == ["a.JPG", "b.webp", "c.tiff", "d.bmp", "e.png", "f.png"]
    assert "e.gif: saved as png, since .gif files are not written" in capsys.readouterr().err
    for name in files(tmp_path / "same"):
        kind = {"JPG": "JPEG", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP", "png": "PNG"}
        assert Image.open(tmp_path / "same" / name).format == kind[name.split(".")[1]]
    assert run("-i", source, "-o", tmp_path / "jpg", "-c", weights, "--format", "jpg") == 0
    assert files(tmp_path / "jpg") == [f"{stem}.jpg" for stem in "abcde"] + ["f.png"]
    assert "f.png: saved as png, since .jpg cannot hold its alpha" in capsys.readouterr().err


def test_a_png_for_the_sake_of_alpha_is_found_again(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "in"
    photo(source / "b.png")
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save(source / "a.png")
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save(source / "c.tif")

    def enhanced(output: str, kind: str) -> tuple[list[str], str]:
        how = ["-i", source, "-o", tmp_path / output, "-c", weights, "--skip_existing"]
        assert run(*how, "--format", kind) == 0
        return files(tmp_path / output), capsys.readouterr().out

    assert enhanced("jpg", "jpg") == (
        ["a.png", "b.jpg", "c.png"],
        "3 enhanced, 0 skipped, 0 failed\n",
    )
    assert enhanced("jpg", "jpg")[1] == "0 enhanced, 3 skipped, 0 failed\n"
    # What b.png is a result of another format for is no reason to skip it:
    assert enhanced("both", "png")[1] == "3 enhanced, 0 skipped, 0 failed\n"
    assert enhanced("both", "jpg") == (
        ["a.png", "b.jpg", "b.png", "c.png"],
        "1 enhanced, 2 skipped, 0 failed\n",
    )


def test_the_bar_shows_bytes_of_files(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(3):
        photo(tmp_path / "in" / f"{k}.png", 12 + 40 * k)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "in").iterdir())]
    (tmp_path / "in" / "damaged.png").write_bytes(b"no photograph" * 100)
    bars, progress_bar, steps = [], inference.progress_bar, []

    def kept(jobs: object) -> object:
        bars.append(progress_bar(jobs))
        assert bars[0].total == sum(sizes) + 1300
        return bars[0]

    def recording(*arguments: object) -> object:
        steps.append(bars[0].n)
        return enhance(*arguments)

    enhance = inference.enhance
    monkeypatch.setattr(inference, "progress_bar", kept)
    monkeypatch.setattr(inference, "enhance", recording)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights) == 1
    assert steps == pytest.approx([0, sizes[0], sizes[0] + sizes[1]])
    assert bars[0].n == pytest.approx(sum(sizes)) and bars[0].total == sum(sizes)
    assert bars[0].desc == "4/4 photos"


def test_what_reading_could_not_keep_is_said(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    photo(tmp_path / "in" / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    frames = [Image.new("L", (9, 9), grey) for grey in (10, 20)]
    frames[0].save(tmp_path / "in" / "b.gif", save_all=True, append_images=frames[1:])
    for dtype in ("u1", "u2"):
        ink = np.zeros((9, 9, 4), dtype)
        tifffile.imwrite(tmp_path / "in" / f"c {dtype}.tif", ink, photometric="separated")
        light = b"P6 9 9 %d\n" % np.iinfo(dtype).max + ink[..., :3].tobytes()
        (tmp_path / "in" / f"d {dtype}.ppm").write_bytes(light)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights) == 0
    told = capsys.readouterr().err
    assert "a.jpg: its EXIF is damaged and left out" in told
    assert "b.gif: only the first of its frames" in told
    assert re.findall(r"(\w \w+)\.\w+: read with only 8 bits", told) == ["d u2"]


def test_names_that_collide_survive_and_stay(tmp_path: Path, weights: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    pixels = {name: photo(source / name) for name in ("a.bmp", "a.png", "a.bmp.tif", "B.bmp")}
    photo(source / "b.png")
    assert run("-i", source, "-o", output, "-c", weights) == 0
    names = files(output)
    assert names[0] == "B.bmp.png"
    assert "b.png.png" in names
    assert len(names) == 5
    results = [read_photo(output / name).pixels for name in names]
    for before in pixels.values():  # each has its own result
        assert any(np.array_equal(after, before * 2) for after in results)
    times = {name: (output / name).stat().st_mtime_ns for name in names}
    assert run("-i", source, "-o", output, "-c", weights, "--skip_existing") == 0
    assert files(output) == names
    assert {name: (output / name).stat().st_mtime_ns for name in names} == times


def test_the_longest_names_have_results(tmp_path: Path, weights: Path) -> None:
    for stem in ("x" * 251, "ä" * 125):
        for suffix in (".jpg", ".bmp"):
            photo(tmp_path / "in" / (stem + suffix))
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights) == 0
    assert len(files(tmp_path / "out")) == 4


def test_recursion_keeps_folders_and_leaves_its_own_results_alone(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    source, output = tmp_path / "in", tmp_path / "in" / "out"
    photo(source / "a.png")
    photo(source / "x" / "y" / "a.png")
    for _ in range(2):
        assert run("-i", source, "-o", output, "-c", weights, "--recursive") == 0
        assert files(output) == ["a.png", "x/y/a.png"]
    told = capsys.readouterr()
    assert "2 enhanced, 0 skipped, 0 failed" in told.out
    assert f"left alone as results: 2 in {output}" in told.err
    assert run("-i", source / "x" / "y" / "a.png", "-o", tmp_path / "one", "-c", weights) == 0
    assert files(tmp_path / "one") == ["a.png"]


def test_what_cannot_be_listed_or_found_is_said(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    source, scan = tmp_path / "in", os.scandir
    photo(source / "a.png")
    photo(source / "closed" / "b.png")

    def scandir(folder: str) -> object:
        if str(folder).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run("-i", source, "-o", tmp_path / "out", "-c", weights, "--recursive") == 1
    out, err = capsys.readouterr()
    assert out == "1 enhanced, 0 skipped, 0 failed\n"
    assert f"cannot list {source / 'closed'}: Permission denied" in err
    with pytest.raises(UserError, match="cannot list"):
        list_photos(source, recursive=True)
    with pytest.raises(UserError, match="cannot list"):
        run("-i", source / "closed", "-o", tmp_path / "out", "-c", weights)
    (source / "li\nnk.png").symlink_to("nothing")
    (source / "loop.png").symlink_to("loop.png")
    (source / "no\tphoto.txt").touch()
    assert run("-i", source, "-o", tmp_path / "out", "-c", weights) == 1
    err = capsys.readouterr().err
    assert f"failed: {source}/li\\nnk.png is missing" in err
    assert f"failed: {source}/loop.png cannot be read" in err
    assert "left alone: no\\tphoto.txt" in err


def test_a_wrong_folder_is_refused(tmp_path: Path, weights: Path) -> None:
    source = tmp_path / "in"
    photo(source / "a.png")
    photo(source / "in" / "a.png")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    wrong = {
        ("missing", "out"): "no file or folder",
        ("empty", "out"): "no photographs",
        ("in", "in"): "the folder of the photographs",
        ("in", "in/../in/"): "the folder of the photographs",
        ("in", "link"): "the folder of the photographs",
        ("in/a.png", "in"): "the folder of the photographs",
        ("in", "file"): "looks like a file",
        ("in", "b.png"): "looks like a file",
        ("in/a.png", "in/a.png"): "would replace the photograph",
        ("in/a.png", "link/a.png"): "would replace the photograph",
        ("in/a.png", "b.gif"): r"\.gif files are not written; end it with one of \.bmp, \.jfif",
        ("in/a.png", "results.v2"): r"\.v2 files are not written.* or with / if it is a folder",
        ("in/a.png", "file/b.png"): "cannot write",
        ("in", "file/below"): "cannot write",
        ("in", "x" * 300): "cannot write",
    }
    for given, output in ((("",), "out"), ((source,), ""), ((source, ""), "out")):
        with pytest.raises(UserError, match="is empty"):
            run("-i", *given, "-o", output, "-c", weights)
    for (given, output), sentence in wrong.items():
        with pytest.raises(UserError, match=sentence):
            run("-i", tmp_path / given, "-o", f"{tmp_path}/{output}", "-c", weights)
    # in/in/a.png would replace in/a.png, which is to be enhanced as well:
    photo(source / "in" / "in" / "a.png")
    with pytest.raises(UserError, match="would replace"):
        photos, names = [f"{source}/in/in/a.png", f"{source}/in/a.png"], ["in/a.png", "a.png"]
        plan(photos, *name_in_folder(names, str(source), "png"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_checkpoint_is_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "in" / "a.png")
    store = tmp_path / "pretrained_models"
    store.mkdir()
    monkeypatch.setattr("utils.checkpoint.PRETRAINED", store)

    def start(*checkpoint: object) -> int:
        return run("-i", tmp_path / "in", "-o", tmp_path / "out", *checkpoint)

    with pytest.raises(UserError, match="no checkpoint given"):
        start()
    with pytest.raises(UserError, match="nothing yet"):
        start("-c", "half")
    (store / "half.pth").write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match=r"\(half\)"):
        start("-c", "quarter")
    torch.save({"module.cond1.weight": torch.zeros(1)}, tmp_path / "shapes.pth")
    torch.save({"run": exit}, tmp_path / "pickle.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("shapes.pth", "pickle.pth", "text.pth", "missing.pth"):
        with pytest.raises(UserError, match=name):
            start("-c", tmp_path / name)
    assert not (tmp_path / "out").exists()
    assert start("-c", "half") == 0
    assert start("-c", "half.pth") == 0
    (store / "half.pth").rename(store / "rave_default.pth")
    assert start() == 0


def test_devices_that_are_not_there_are_refused(tmp_path: Path, weights: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights]
    for device in ("cuda:99", "mps:7", "toaster"):
        with pytest.raises(UserError, match=f"no device {device}"):
            run(*arguments, "--device", device)


def test_amp_is_for_cpus_with_instructions_for_it(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = photo(tmp_path / "in" / "a.png").astype(int)
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights, "--device", "cpu"]
    monkeypatch.setattr(inference, "has_bf16", lambda device: False)
    with pytest.raises(UserError, match="--amp: this cpu has no bf16 instructions; leave it out"):
        run(*arguments, "--amp")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(inference, "has_bf16", lambda device: device.type == "cpu")
    photo_light_map, amps = inference.photo_light_map, []

    def recording(*photograph: object, **how: object) -> torch.Tensor:
        amps.append(how["amp"])
        return photo_light_map(*photograph, **how)

    monkeypatch.setattr(inference, "photo_light_map", recording)
    assert run(*arguments, "--amp") == 0
    assert amps == [True]
    assert np.abs(read_photo(tmp_path / "out" / "a.png").pixels - 2 * pixels).max() <= 2


def test_a_full_disk_ends_the_run_with_what_is_done(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for k in range(5):
        photo(tmp_path / "in" / f"{k}.png")
    save = inference.write_photo

    def fill(result: object, target: Path) -> list[str]:
        if target.name == "2.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(result, target)

    monkeypatch.setattr(inference, "write_photo", fill)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights) == 1
    out, err = capsys.readouterr()
    assert "2.png: No space left on device" in err
    assert "--skip_existing goes on" in err
    assert re.fullmatch(r"[23] enhanced, 0 skipped, 1 failed\n", out)
    monkeypatch.setattr(inference, "write_photo", save)
    (tmp_path / "out" / "3.png").mkdir(exist_ok=True)  # one that can't be replaced: others go on
    run_again = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights, "--skip_existing"]
    assert run(*run_again) == 1
    assert "2 enhanced, 2 skipped, 1 failed" in capsys.readouterr().out


def test_a_lack_of_memory_is_named(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / "in" / name)
    read_samples = png.read_samples

    def read_little(path: Path, header: object) -> np.ndarray:
        if path.name == "a.png":
            raise MemoryError
        return read_samples(path, header)

    monkeypatch.setattr(png, "read_samples", read_little)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights) == 1
    assert "a.png: out of memory; give a smaller --tile" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["b.png"]


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_its_status(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: int | None,
) -> None:
    for k in range(4):
        photo(tmp_path / "in" / f"{k}.png")
    enhance = inference.enhance

    def interrupted(enhancer: UNetEnhancer, photo: object, *rest: object) -> object:
        if len(calls) == 2:
            end = KeyboardInterrupt()
            if number:
                end.signal = number
            raise end
        calls.append(photo)
        return enhance(enhancer, photo, *rest)

    calls = []
    monkeypatch.setattr(inference, "enhance", interrupted)
    status = run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights)
    assert status == 128 + (number or signal.SIGINT)
    told = capsys.readouterr()
    assert "interrupted; --skip_existing goes on" in told.err
    assert told.out == "2 enhanced, 0 skipped, 0 failed\n"
    assert files(tmp_path / "out") == ["0.png", "1.png"]


def test_a_second_signal_waits_for_what_is_being_saved(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for k in range(3):
        photo(tmp_path / "in" / f"{k}.png")
    enhance, save, calls = inference.enhance, inference.write_photo, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)  # which the signal ends
        return enhance(*arguments)

    def slow(result: object, target: Path) -> list[str]:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return save(result, target)

    monkeypatch.setattr(inference, "enhance", interrupted)
    monkeypatch.setattr(inference, "write_photo", slow)
    with signals_answered():
        assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights) == 130
    reset_signals()
    assert capsys.readouterr().out == "1 enhanced, 0 skipped, 0 failed\n"
    assert files(tmp_path / "out") == ["0.png"]


# In a process of its own


def test_exit_statuses_and_sentences(tmp_path: Path, weights: Path) -> None:
    source = tmp_path / "in"
    photo(source / "1.jpg", quality=95)
    whole = (source / "1.jpg").read_bytes()
    photo(source / "2 ü.png")
    broken = {"half.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.jpg": b"hello"}
    for name, contents in broken.items():
        (source / name).write_bytes(contents)
    (source / "notes.txt").touch()
    arguments = ("-i", "in", "-o", "out", "-c", weights)
    done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "2 enhanced, 0 skipped, 3 failed\n"
    for name in (*broken, "notes.txt"):
        assert name in done.stderr
    assert "photos |" in done.stderr and "B/s" in done.stderr and "left" in done.stderr
    assert files(tmp_path / "out") == ["1.png", "2 ü.png"]

    missing = subprocess.run(
        command("-i", "nowhere", "-o", "out", "-c", weights),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no file or folder at nowhere")
    for result in (done, missing):
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_half_way_loses_nothing_done(
    tmp_path: Path, weights: Path, forks: Forks, end: int
) -> None:
    for k in range(100):
        photo(tmp_path / "in" / f"{k}.png", 192, 192)
    arguments = "-i", tmp_path / "in", "-o", tmp_path / "out", "-c", weights
    pid = forks.start("inference", list(map(str, arguments)))
    while not (tmp_path / "out" / "2.png").exists() and members(pid):
        time.sleep(0.01)
    os.kill(pid, end)
    ends, status, said = group_ends(pid, 60), forks.wait(pid), forks.said.read_text()
    assert ends and status == (-end if end == signal.SIGKILL else 128 + end), said
    results = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert 3 <= len(results) < 100
    for path in results:
        assert read_photo(path).pixels.shape == (192, 192, 3)
    if end != signal.SIGKILL:
        assert said.splitlines().count(f"{len(results)} enhanced, 0 skipped, 0 failed") == 1
        assert said.count("interrupted; --skip_existing goes on from here\n") == 1
        assert "Traceback" not in said
        assert len(list((tmp_path / "out").iterdir())) == len(results)


def test_released_weights_give_released_results(shared: Path, tmp_path: Path) -> None:
    name = "111.png"
    source = shared / "photos" / "lol_eval15" / "input" / name
    weights = shared / "released" / "rave_unpaired.pth"
    assert run("-i", source, "-o", tmp_path, "-c", weights) == 0
    expected = read_photo(shared / "expected" / "rave_unpaired" / name).pixels.astype(int)
    difference = np.abs(read_photo(tmp_path / name).pixels - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4
