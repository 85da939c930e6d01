import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compute_metrics
from data.images import read_rgb
from evaluation import setup
from evaluation.networks import load_niqe
from evaluation.niqe import niqe
from tests.commands import help_of
from utils.errors import UserError, WorkError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folders(tmp_path):
    """Three pairs, `1` to `3`, of 48 x 36 pixels; the enhanced ones are a level too bright."""
    for folder in ("gt", "out"):
        (tmp_path / folder).mkdir()
    for number in range(1, 4):
        gt = np.random.default_rng(number).integers(0, 255, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(gt).save(tmp_path / "gt" / f"{number}.png")
        Image.fromarray(gt + 1).save(tmp_path / "out" / f"{number}.png")
    return tmp_path


@pytest.fixture
def run(folders, capsys):
    """Runs the script's `main` on the folders; gives its status and what it printed."""

    def run(*options: object):
        paths = f"--gt_images_path {folders / 'gt'} --enhanced_images_path {folders / 'out'}"
        arguments = [*paths.split(), "--device", "cpu", *map(str, options)]
        status = compute_metrics.main(compute_metrics.parse_arguments(arguments))
        return status, capsys.readouterr()

    return run


def test_what_needs_no_network_starts_without_what_takes_long_to_import(folders):
    """torchvision alone takes as long as all else; a package set to None cannot be imported."""
    hidden = ("torchvision", "lpips", "pytorch_fid", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden})); import runpy; "
        "runpy.run_path('compute_metrics.py', run_name='__main__')"
    )
    words = f"--gt_images_path {folders / 'gt'} --enhanced_images_path {folders / 'out'}"
    command = [sys.executable, "-c", code, *words.split(), "--metrics", "psnr", "ssim"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "48.131" in done.stdout


def line_of(printed, label: str) -> str:
    return next(line for line in printed.out.splitlines() if line.startswith(label))


def test_all_metrics_under_both_protocols(run, folders, random_hub):
    status, printed = run("--csv", folders / "s.csv", "--json", folders / "s.json")
    assert status == 0
    assert "48.131 [48.131, 48.131]" in line_of(printed, "PSNR")  # 20 log10(255)
    contents = json.loads((folders / "s.json").read_text())
    summary = contents["summary"]
    assert summary["released"]["psnr"]["value"] == pytest.approx(48.1308, abs=1e-4)
    assert 0.99 < summary["standard"]["ssim"]["value"] < 1
    lpips = [summary[protocol]["lpips"]["value"] for protocol in ("standard", "released")]
    assert 0 < lpips[0] < 0.01 and 0 < lpips[1] < 0.01 and lpips[0] != lpips[1]
    assert summary["standard"]["fid"]["value"] > 0
    assert "FID of 3 images" in printed.out
    assert contents["versions"]["torch"] == torch.__version__.split("+")[0]
    assert contents["weights"]["lpips"]["file"].endswith("alexnet-owt-7be5be79.pth")
    assert [image["name"] for image in contents["images"]] == ["1", "2", "3"]
    with (folders / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[0]["psnr"]) == pytest.approx(48.1308, abs=1e-4)
    assert len(rows[0]["weights"].split("sha256=")) == 3


def test_missing_networks_are_said_and_the_rest_computed(run, folders, empty_hub):
    status, printed = run("--json", folders / "s.json")
    assert status == 0
    assert "48.131" in line_of(printed, "PSNR")
    for label, file in (("LPIPS", "alexnet-owt"), ("FID", "pt_inception")):
        assert "unavailable" in line_of(printed, label)
        assert file in line_of(printed, f"note: {label} is unavailable")
    assert line_of(printed, "FID").endswith("not part of it")
    note = json.loads((folders / "s.json").read_text())["summary"]["standard"]["fid"]["note"]
    assert "unavailable" in note


def test_a_network_asked_for_by_name_must_be_there(run, monkeypatch, empty_hub):
    monkeypatch.setattr(compute_metrics, "score_together", None)  # no work is done
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth.*--lpips_weights"):
        run("--metrics", "psnr", "lpips")
    with pytest.raises(UserError, match=r"no file at nowhere\.pth"):
        run("--fid_weights", "nowhere.pth")


def test_chosen_metrics_and_protocol_only(run, folders, empty_hub):
    status, printed = run("--metrics", "ssim", "--protocol", "released", "--json", folders / "s")
    assert status == 0 and "SSIM" in printed.out and "PSNR" not in printed.out
    assert list(json.loads((folders / "s").read_text())["summary"]) == ["released"]
    assert "FID" not in run("--protocol", "released")[1].out
    with pytest.raises(UserError, match="released protocol has no FID"):
        run("--metrics", "fid", "--protocol", "released")


def test_fid_asked_for_by_name_needs_two_pairs(run, folders, monkeypatch, random_hub):
    for number in (2, 3):
        (folders / "out" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(WorkError, match="FID needs at least 2 pairs"):
        run("--metrics", "fid", "--protocol", "standard")
    for number in (2, 3):
        (folders / "out" / f"{number}.png").unlink()
    monkeypatch.setattr(compute_metrics, "score_together", None)  # no work is done
    with pytest.raises(UserError, match="FID needs at least 2 pairs"):
        run("--metrics", "psnr", "fid")


def test_damaged_files_are_named_counted_and_left_out(run, folders, empty_hub):
    whole = (folders / "out" / "2.png").read_bytes()
    (folders / "out" / "2.png").write_bytes(whole[: len(whole) // 2])
    (folders / "gt" / "3.png").write_bytes(b"")
    (folders / "out" / "3.png").write_bytes(b"no image")
    status, printed = run("--json", folders / "s.json")
    assert status == 1
    assert f"{folders / 'out' / '3.png'} is not an image" in printed.err
    assert f"{folders / 'out' / '2.png'}" in printed.err
    assert f"{folders / 'gt' / '3.png'} is empty" in printed.err
    assert "1 pair:" in printed.out and "3 files could not be used" in printed.out
    contents = json.loads((folders / "s.json").read_text())
    assert len(contents["left_out"]) == 3 and contents["pairs"] == 1


def test_nothing_readable_is_an_error(run, folders, empty_hub):
    for number in range(1, 4):
        (folders / "out" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(WorkError, match="none of the pairs"):
        run("--json", folders / "s.json")
    assert not (folders / "s.json").exists()


def test_leftovers_are_listed(run, folders, empty_hub):
    (folders / "gt" / "1.png").rename(folders / "gt" / "one.png")
    (folders / "out" / "2.png").rename(folders / "out" / "2(1).png")
    Image.new("RGB", (48, 36)).save(folders / "out" / "2(2).png")
    status, printed = run("--json", folders / "s.json")
    assert status == 1 and "2 pairs" in printed.out
    assert (
        "2 files without a partner: 1 without an enhanced image, 1 without a ground truth; they"
    ) in printed.out
    unmatched = json.loads((folders / "s.json").read_text())["unmatched"]
    for kind, name in (
        ("gt", "gt/one.png"),
        ("enhanced", "out/1.png"),
        ("set_aside", "out/2(2).png"),
    ):
        assert unmatched[kind] == [str(folders / name)]
        assert str(folders / name) in printed.err


def test_names_that_the_released_rule_sets_aside_are_no_failure(run, folders, empty_hub):
    (folders / "out" / "2.png").rename(folders / "out" / "2(1).png")
    Image.new("RGB", (48, 36)).save(folders / "out" / "2(2).png")
    status, printed = run("--metrics", "psnr")
    assert status == 0 and "1 set aside" in printed.err


def test_sizes_that_differ_are_named_before_any_work(run, folders, monkeypatch, empty_hub):
    Image.new("RGB", (50, 36)).save(folders / "out" / "1.png")
    Image.new("RGB", (36, 48)).save(folders / "out" / "3.png")
    with monkeypatch.context() as context:
        context.setattr(compute_metrics, "score_together", None)
        with pytest.raises(UserError, match=r"2 of 3 pairs.*1\.png \(50x36\).*3\.png \(36x48\)"):
            run()
    status, printed = run("--resize_to_gt", "--json", folders / "s.json")
    assert status == 0 and "3 pairs" in printed.out
    assert "2 enhanced images resized" in printed.out
    assert json.loads((folders / "s.json").read_text())["resized"] == 2


def test_sizes_found_to_differ_late_cost_only_that_pair(run, folders, monkeypatch, empty_hub):
    Image.new("RGB", (50, 36)).save(folders / "out" / "1.png")
    monkeypatch.setattr(setup, "check_sizes", lambda pairs: None)  # headers may lie
    status, printed = run()
    assert status == 1 and "2 pairs" in printed.out
    assert "sizes differ" in printed.err and "1.png (50x36)" in printed.err


def test_orientation_counts_for_sizes(run, folders, empty_hub):
    upright = Image.open(folders / "gt" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(folders / "gt" / "1.png", exif=exif)
    status, printed = run("--metrics", "psnr")
    assert status == 0 and "48.131 [48.131, 48.131]" in line_of(printed, "PSNR")


def test_orientation_behind_the_pixels_counts_too(run, folders, empty_hub):
    path = folders / "gt" / "1.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    png = path.read_bytes()
    start = png.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(png[start : start + 4], "big")
    end = png.index(b"IEND") - 4
    path.write_bytes(png[:start] + png[stop:end] + png[start:stop] + png[end:])
    status, printed = run("--metrics", "psnr")
    assert status == 0 and "48.131 [48.131, 48.131]" in line_of(printed, "PSNR")


def test_images_too_small_for_a_metric_are_left_out(run, folders, empty_hub):
    for folder in ("gt", "out"):
        Image.new("RGB", (6, 9)).save(folders / folder / "2.png")
    assert run("--metrics", "psnr")[0] == 0
    status, printed = run("--metrics", "ssim")
    assert status == 1 and "2.png is smaller than the 7 pixels that SSIM needs" in printed.err


def test_which_images_are_too_small_depends_on_no_network(run, folders, random_hub, monkeypatch):
    for folder in ("gt", "out"):
        Image.new("RGB", (20, 20)).save(folders / folder / "2.png")
    assert run("--metrics", "lpips", "--protocol", "released")[0] == 0  # enlarges what it sees
    with_network = run("--protocol", "standard")
    monkeypatch.setattr(setup, "load_networks", lambda *_: ({}, {"lpips": "none"}))
    for status, printed in (with_network, run("--protocol", "standard")):
        assert status == 1 and "2.png is smaller than the 32 pixels that LPIPS" in printed.err


def test_equal_images_have_no_finite_psnr(run, folders, empty_hub):
    for number in range(1, 4):
        path = folders / "gt" / f"{number}.png"
        (folders / "out" / path.name).write_bytes(path.read_bytes())
    status, printed = run("--json", folders / "s.json", "--report", folders / "r.html")
    assert status == 0 and "nan" not in printed.out.lower()
    assert "inf" in line_of(printed, "PSNR") and "1.0000" in line_of(printed, "SSIM")


def test_options_that_could_only_fail_are_refused_first(run, folders, monkeypatch, empty_hub):
    monkeypatch.setattr(compute_metrics, "score_together", None)
    with pytest.raises(UserError, match="cannot write"):
        run("--csv", folders)
    with pytest.raises(UserError, match="cannot write"):
        run("--report", folders / "gt" / "1.png" / "r.html")
    with pytest.raises(UserError, match="cannot write"):
        run("--json", folders / ("x" * 300))
    with pytest.raises(UserError, match="cannot write ''"):
        run("--report", "")
    with pytest.raises(UserError, match="only shown in the report"):
        run("--input_images_path", folders / "gt")
    with pytest.raises(UserError, match="--lpips_weights does nothing"):
        run("--metrics", "psnr", "--lpips_weights", "alex.pth")
    with pytest.raises(UserError, match="--lpips_net does nothing"):
        run("--metrics", "fid", "--lpips_net", "vgg")
    with pytest.raises(UserError, match="--fid_weights does nothing"):
        run("--protocol", "released", "--fid_weights", "inception.pth")


def test_outputs_replace_neither_images_nor_each_other(run, folders, monkeypatch, empty_hub):
    monkeypatch.setattr(compute_metrics, "score_together", None)
    (folders / "out" / "3.png").rename(folders / "out" / "alone.png")
    (folders / "link.png").symlink_to(folders / "out" / "1.png")
    for image in ("gt/2.png", "out/alone.png", "out/../gt/3.png", "link.png"):
        with pytest.raises(UserError, match=r"png is an image or another output"):
            run("--csv", folders / image)
    with pytest.raises(UserError, match="scores is an image or another output"):
        run("--csv", folders / "scores", "--json", folders / "scores")


def test_files_are_written_although_nobody_reads_the_table(run, folders, monkeypatch, empty_hub):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(compute_metrics, "table_lines", closed)
    outputs = [folders / name for name in ("s.csv", "s.json", "s.html")]
    with pytest.raises(BrokenPipeError):
        run("--csv", outputs[0], "--json", outputs[1], "--report", outputs[2])
    assert all(output.is_file() for output in outputs)


def test_a_file_that_cannot_be_written_in_the_end_costs_not_the_table(
    run, folders, monkeypatch, empty_hub, capsys
):
    def full(*_):
        raise UserError("cannot write s.json: No space left on device")

    monkeypatch.setattr(compute_metrics, "write_json", full)
    with pytest.raises(WorkError, match="No space left"):
        run("--csv", folders / "s.csv", "--json", folders / "s.json")
    assert (folders / "s.csv").is_file() and "PSNR" in capsys.readouterr().out


def test_a_full_folder_for_previews_costs_only_the_report(
    run, folders, monkeypatch, empty_hub, capsys
):
    real = Image.Image.save

    def save(image, target, kind=None, **options):
        if kind == "WEBP":
            raise OSError(28, "No space left on device")
        real(image, target, kind, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(WorkError, match="No space left on device; set TMPDIR"):
        run("--csv", folders / "s.csv", "--report", folders / "r.html")
    assert (folders / "s.csv").is_file() and "3 pairs" in capsys.readouterr().out


def test_previews_are_gone_in_the_end(run, folders, monkeypatch, empty_hub):
    (folders / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folders / "tmp"))
    seen = []
    write = compute_metrics.write_report
    monkeypatch.setattr(
        compute_metrics,
        "write_report",
        lambda *arguments: (seen.extend((folders / "tmp").glob("*/*")), write(*arguments)),
    )
    assert run("--report", folders / "r.html")[0] == 0
    assert len(seen) == 6 and not list((folders / "tmp").iterdir())


def test_help_has_a_line_and_a_default_for_every_option():
    said = help_of("compute_metrics.py")
    options = re.findall(r"^  (-.*(?:\n {6}.*)*)", said, re.M)  # with their lines of help
    assert len(options) == 15
    assert all(re.search(r"(  |\n)\s*\w", option) for option in options)
    said = " ".join(said.split())
    for default in ("both", "alex", "auto", "all whose networks can be had"):
        assert f"(default: {default})" in said
    assert "files to write (default: none)" in said


def test_a_name_of_any_bytes_is_scored(run, folders, empty_hub):
    for folder in ("gt", "out"):
        for old, new in (("1.png", "caf\udce9.png"), ("2.png", "a\nb.png")):
            (folders / folder / old).rename(folders / folder / new)
    (folders / "out" / "a\nb.png").write_bytes(b"no image")
    outputs = [folders / name for name in ("s.csv", "s.json", "s.html")]
    status, printed = run("--csv", outputs[0], "--json", outputs[1], "--report", outputs[2])
    assert status == 1 and r"a\nb.png is not an image" in printed.err
    assert all(r"caf\udce9" in output.read_text(encoding="utf-8") for output in outputs)


def test_an_unreadable_input_costs_only_its_picture(run, folders, empty_hub):
    (folders / "in").mkdir()
    Image.new("RGB", (48, 36)).save(folders / "in" / "1.png")
    (folders / "in" / "2.png").write_bytes(b"no image")
    (folders / "in" / "4.png").write_bytes(b"of no pair")
    report, table = folders / "r.html", folders / "s.json"
    status, printed = run(
        *("--input_images_path", folders / "in", "--report", report, "--json", table)
    )
    assert status == 1 and "3 pairs" in printed.out
    assert f"1 of the inputs without a pair: {folders / 'in' / '4.png'}" in printed.err
    unmatched = json.loads(table.read_text())["unmatched"]
    assert unmatched["input"] == [str(folders / "in" / "4.png")]
    assert unmatched["without_input"] == [str(folders / "gt" / "3.png")]
    assert str(folders / "in" / "2.png") in printed.err
    assert "1 without an input" in printed.err
    assert report.read_text().count('data-version="input" src=') == 1


@pytest.fixture
def textured(tmp_path, capsys, niqe_parameters, empty_hub):
    """Runs the script on `1` to `3` of 200 x 100 pixels in in/, out/ and gt/, of which any are
    named; the inputs are darker and noisier."""
    rng = np.random.default_rng(0)
    for number in range(1, 4):
        coarse = rng.integers(0, 255, (25, 50, 3), dtype=np.uint8)
        gt = np.asarray(Image.fromarray(coarse).resize((200, 100), Image.Resampling.BICUBIC))
        noisy = np.clip(gt / 3 + rng.normal(0, 9, gt.shape), 0, 255).astype(np.uint8)
        for folder, pixels in (("gt", gt), ("out", gt // 2), ("in", noisy)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")

    def run(folders: str, *options: object):
        flags = {"gt": "--gt_images_path", "out": "--enhanced_images_path"}
        flags["in"] = "--input_images_path"
        paths = [word for name in folders.split() for word in (flags[name], str(tmp_path / name))]
        rest = ["--niqe_parameters", str(niqe_parameters), "--device", "cpu", *map(str, options)]
        status = compute_metrics.main(compute_metrics.parse_arguments([*paths, *rest]))
        return status, capsys.readouterr()

    return run


def test_niqe_needs_no_ground_truth(textured, tmp_path, niqe_parameters):
    outputs = [tmp_path / name for name in ("s.csv", "s.json", "s.html")]
    options = ["--csv", outputs[0], "--json", outputs[1], "--report", outputs[2]]
    status, printed = textured("out", "--metrics", "niqe", *options)
    assert status == 0 and "3 images:" in printed.out and "NIQE input" not in printed.out
    pristine = load_niqe(niqe_parameters).network
    values = [niqe(read_rgb(tmp_path / "out" / f"{n}.png"), pristine) for n in range(1, 4)]
    assert f" {np.mean(values):.3f} [" in line_of(printed, "NIQE")
    contents = json.loads(outputs[1].read_text())
    assert contents["weights"]["niqe"]["file"] == str(niqe_parameters)
    told = contents["summary"]["no_reference"]["niqe"]
    assert told["value"] == pytest.approx(np.mean(values))
    assert told["interval"][0] < told["value"] < told["interval"][1]
    first = contents["images"][0]
    assert first["gt"] is first["input"] is None and (first["width"], first["height"]) == (200, 100)
    with outputs[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["niqe"]) for row in rows] == pytest.approx(values)
    page = outputs[2].read_text()
    assert "without ground truth" in page and 'value="gt"' not in page and "NIQE" in page


def test_niqe_of_inputs_stands_beside_that_of_their_results(textured, tmp_path):
    (tmp_path / "in" / "1.png").rename(tmp_path / "in" / "one.png")
    table, page = tmp_path / "s.json", tmp_path / "s.html"
    status, printed = textured("out in", "--metrics", "niqe", "--json", table, "--report", page)
    assert status == 1 and "2 images:" in printed.out
    assert "2 files without a partner: 1 of the inputs without a pair, 1 without an input" in (
        printed.out
    )
    assert "2 files without a partner" in page.read_text()
    summary = json.loads(table.read_text())["summary"]["no_reference"]
    before, after, change = (
        summary[name]["value"] for name in ("niqe_input", "niqe", "niqe_change")
    )
    assert change == pytest.approx(after - before) and change != 0
    assert f" {change:+.3f} [" in line_of(printed, "NIQE change")
    assert page.read_text().count('data-version="input" src=') == 2


def test_niqe_and_gt_mean_come_with_other_metrics(textured, tmp_path):
    (tmp_path / "in" / "1.png").unlink()
    metrics = ("--metrics", "psnr", "ssim", "niqe", "--protocol", "gt_mean", "both")
    page = tmp_path / "s.html"
    status, printed = textured("gt out in", *metrics, "--report", page)
    assert status == 1 and "2 pairs:" in printed.out and "1 without an input" in printed.out
    header = printed.out.splitlines()[1].split("  ")
    assert [name.strip() for name in header if name] == [
        *("gt_mean (not comparable)", "standard", "released")
    ]
    row = line_of(printed, "PSNR").split()[3:]
    assert float(row[0]) > float(row[3]) + 10  # but for rounding, half of the light is all
    assert "note: gt_mean scales" in printed.out and "NIQE change" in printed.out
    assert page.read_text().count("gt_mean (not comparable)") > 3
    assert "not comparable with those of the other protocols</p>" in page.read_text()
    Image.new("RGB", (9, 9)).save(tmp_path / "gt" / "1.png")  # sizes matter where pixels compare
    status, printed = textured("gt out", "--metrics", "niqe")
    assert status == 0 and "PSNR" not in printed.out and "3 images:" in printed.out
    with pytest.raises(UserError, match="sizes differ in 1 of 3"):
        textured("gt out", "--metrics", "niqe", "psnr")


def test_images_without_niqe_are_named(textured, tmp_path):
    Image.new("RGB", (191, 191)).save(tmp_path / "out" / "1.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "in" / "2.png")
    status, printed = textured("out in", "--metrics", "niqe")
    assert status == 1 and "1 image:" in printed.out
    assert f"{tmp_path / 'out' / '1.png'} is smaller than the two blocks" in printed.err
    assert f"{tmp_path / 'in' / '2.png'} has no two blocks of 96x96 with texture" in printed.err


def test_what_makes_no_sense_with_niqe_is_refused(textured, monkeypatch):
    monkeypatch.setattr(compute_metrics, "score_together", None)
    for folders, options, sentence in (
        ("out", [], "PSNR .*SSIM, LPIPS, FID compare with ground truth; give --gt_images_path"),
        ("out", ["--metrics", "niqe", "ssim"], "SSIM compare with ground truth"),
        ("out", ["--metrics", "niqe", "--protocol", "released"], "--protocol does nothing"),
        ("gt out", ["--metrics", "niqe", "--resize_to_gt"], "--resize_to_gt does nothing"),
        ("gt out", ["--metrics", "psnr"], "--niqe_parameters does nothing where NIQE is not"),
        ("gt out", ["--metrics", "lpips", "niqe", "--protocol", "gt_mean"], "has no LPIPS"),
        ("gt out", ["--metrics", "fid", "niqe", "--protocol", "gt_mean", "released"], "has no FID"),
    ):
        with pytest.raises(UserError, match=sentence):
            textured(folders, *options)


def test_untouched_lol_scores_as_measured_elsewhere(shared, capsys, empty_hub):
    photos = shared / "photos" / "lol_eval15"
    arguments = ["--gt_images_path", str(photos / "gt"), "--metrics", "psnr", "ssim"]
    arguments += ["--enhanced_images_path", str(photos / "input"), "--protocol", "standard"]
    assert compute_metrics.main(compute_metrics.parse_arguments(arguments)) == 0
    printed = capsys.readouterr()
    assert " 7.773 [" in line_of(printed, "PSNR") and " 0.1914 [" in line_of(printed, "SSIM")


def test_the_command_line_exits_with_a_sentence(tmp_path):
    command = [sys.executable, "compute_metrics.py", "--gt_images_path", str(tmp_path)]
    command += ["--enhanced_images_path", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no photographs in") and "Traceback" not in done.stderr
