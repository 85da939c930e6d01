import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.pairs import Pair
from evaluation.fid import fid
from evaluation.scoring import Scores
from evaluation.summary import (
    Estimate,
    bootstrap_interval,
    estimate_fid,
    estimate_mean,
    summarise,
    table_lines,
    unmatched_line,
    write_csv,
    write_json,
)

ORIGIN = {
    "versions": {"torch": "2.4"},
    "weights": {"lpips": {"file": "alex.pth", "sha256": "abc"}},
    "left_out": [],
}


def scores(name: str, psnr: float, lpips: float, features: np.ndarray | None = None) -> Scores:
    pair = Pair(name, Path("gt") / f"{name}.png", Path("out") / f"{name}.jpg")
    values = {
        "standard": {"psnr": psnr, "lpips": lpips},
        "released": {"psnr": psnr + 1, "lpips": lpips / 2},
    }
    return Scores(pair, (6, 4), values, features)


def with_features(count: int) -> list[Scores]:
    features = np.random.default_rng(0).normal(size=(count, 2, 20)).astype(np.float32)
    return [scores(str(n), 10 + 10 * n, 0.2 + 0.2 * n, features[n]) for n in range(count)]


def test_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(20, 3, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high)


def test_interval_is_of_2000_resamples_from_a_fixed_seed():
    values = np.random.default_rng(1).normal(20, 3, 37)
    generator = np.random.default_rng(0)
    means = [generator.choice(values, 37).mean() for _ in range(2000)]
    assert bootstrap_interval(values) == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_no_interval_where_there_can_be_none():
    assert bootstrap_interval([3.0]) is None
    assert bootstrap_interval([3.0, math.inf]) is None


def test_infinite_psnr_is_said_beside_that_of_the_others():
    estimate = estimate_mean([3.0, math.inf, 5.0], "released")
    assert estimate.value == math.inf and estimate.interval is None
    assert estimate.note.startswith("1 of 3 images equal their ground truth in grey")
    assert estimate.note.endswith("the others have 4.000 [3.000, 5.000]")
    assert estimate_mean([math.inf]).note.endswith("equal their ground truth: infinite PSNR")


def test_an_estimate_reads_with_its_metrics_digits():
    assert Estimate(10.56479, (9.8, 11.25)).text("psnr") == "10.565 [9.800, 11.250]"
    assert Estimate(math.inf).text("psnr") == "inf"
    assert Estimate(None, note="in short: at length").text("fid") == "in short"


def test_fid_is_that_of_all_features_and_says_what_it_compares_with():
    scored = with_features(3)
    estimate = estimate_fid(scored)
    gt, enhanced = ([scores.features[side] for scores in scored] for side in (0, 1))
    assert estimate.value == fid(np.array(gt), np.array(enhanced)) > 0
    assert estimate.interval is None
    assert estimate.note.startswith(
        "FID of 3 images against 3 is comparable only with FIDs of the same 3 images and the same "
        "split"
    )
    assert estimate.note.endswith("BAID's test set has 368")
    assert estimate_fid(scored[:1]).value is None


def test_table_shows_protocols_side_by_side():
    summary = summarise(with_features(2), {"ssim": "no file here"})
    lines = table_lines(summary, 2)
    assert lines[0].startswith("2 pairs")
    assert lines[1].split() == ["standard", "released"]
    by_label = {line.split()[0]: line for line in lines[2:]}
    assert "15.000 [10.000, 20.000]" in by_label["PSNR"] and "16.000 [" in by_label["PSNR"]
    assert by_label["SSIM"].split()[2:] == ["unavailable", "unavailable"]
    assert lines.count("note: SSIM is unavailable: no file here") == 1
    assert "0.3000" in by_label["LPIPS"] and "0.1500" in by_label["LPIPS"]
    assert by_label["FID"].endswith("not part of it")
    assert sum(line.startswith("note: FID of 2 images") for line in lines) == 1
    assert table_lines(summary, 1)[0].startswith("1 pair:")


def test_fid_is_no_part_of_the_released_protocol_wherever_it_is_computed():
    for scored, unavailable in (with_features(2), {}), ([scores("a", 1, 1)], {"fid": "no file"}):
        summary = summarise(scored, unavailable)
        assert summary["released"]["fid"] == Estimate(None, note="not part of it")
        assert summary["standard"]["fid"].note != "not part of it"
    assert "fid" not in summarise([scores("a", 1, 1)], {})["released"]


def with_more(count: int) -> list[Scores]:
    """Scores under gt_mean too, and NIQE."""
    scored = with_features(count)
    for number, each in enumerate(scored):
        each.values["gt_mean"] = {"psnr": 25.0 + number}
        niqe = {"niqe_input": 6.0 + number, "niqe": 5.5, "niqe_change": -0.5 - number}
        each.values["no_reference"] = niqe
    return scored


def test_gt_mean_is_labelled_wherever_it_is_shown(tmp_path):
    scored = with_more(2)
    summary = summarise(scored, {})
    assert list(summary["gt_mean"]) == ["psnr", "lpips", "fid"]
    for metric in ("lpips", "fid"):
        assert summary["gt_mean"][metric] == Estimate(None, note="not part of it")
    assert "not comparable" in summary["gt_mean"]["psnr"].note
    assert not summary["standard"]["psnr"].note
    lines = table_lines(summary, 2)
    assert lines[1].split("  ")[-1] == "gt_mean (not comparable)"
    assert sum(line.startswith("note: gt_mean scales each enhanced image") for line in lines) == 1
    write_csv(tmp_path / "s.csv", scored, ORIGIN)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["protocol"] for row in rows if "not comparable" in row["remark"]} == {"gt_mean"}
    write_json(tmp_path / "s.json", scored, summary, ORIGIN)
    written = json.loads((tmp_path / "s.json").read_text())["summary"]["gt_mean"]["psnr"]
    assert written["value"] == 25.5 and "not comparable" in written["note"]
    scored[0].values["gt_mean"]["psnr"] = math.inf
    assert "infinite PSNR; the others have" in summarise(scored, {})["gt_mean"]["psnr"].note


def test_niqe_has_a_table_of_its_own(tmp_path):
    scored = with_more(2)
    lines = table_lines(summarise(scored, {"ssim": "no file"}), 2)
    start = next(n for n, line in enumerate(lines) if line.strip() == "no reference")
    assert [" ".join(line.split()) for line in lines[start + 1 : start + 4]] == [
        "NIQE input \N{DOWNWARDS ARROW} 6.500 [6.000, 7.000]",
        "NIQE \N{DOWNWARDS ARROW} 5.500 [5.500, 5.500]",
        "NIQE change \N{DOWNWARDS ARROW} -1.000 [-1.500, -0.500]",
    ]
    for each in scored:
        each.values = {"no_reference": each.values["no_reference"]}
        each.features = None
    lines = table_lines(summarise(scored, {}), 2)
    assert lines[0].startswith("2 images:") and len(lines) == 5
    write_csv(tmp_path / "s.csv", scored, ORIGIN)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["niqe_change"] for row in rows] == ["-0.5", "-1.5"] and rows[0]["psnr"] == ""


def test_files_without_a_partner_are_counted_by_kind():
    leftovers = {"gt": ["a", "b"], "enhanced": [], "set_aside": ["c"], "without_input": ["d"]}
    assert unmatched_line(leftovers) == (
        "3 files without a partner: 2 without an enhanced image, 1 without an input"
    )
    assert unmatched_line({"set_aside": ["c"], "gt": []}) == unmatched_line({}) == ""


def test_names_that_are_no_utf8_are_written_with_escapes(tmp_path):
    scored = [scores("caf\udce9", 10, 0.5)]
    write_csv(tmp_path / "s.csv", scored, ORIGIN)
    assert r"caf\udce9" in (tmp_path / "s.csv").read_text(encoding="utf-8")
    write_json(tmp_path / "s.json", scored, {}, ORIGIN)
    contents = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert contents["images"][0]["name"] == "caf\udce9"


def test_csv_has_a_line_for_each_image_and_protocol(tmp_path):
    scored = [scores('a,"b', 10, 0.5), scores("c", math.inf, 0.0)]
    write_csv(tmp_path / "s.csv", scored, ORIGIN)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["protocol"]) for row in rows] == [
        ('a,"b', "standard"),
        ('a,"b', "released"),
        ("c", "standard"),
        ("c", "released"),
    ]
    assert float(rows[1]["psnr"]) == 11 and rows[1]["ssim"] == ""
    assert rows[2]["psnr"] == "inf"
    assert rows[0]["weights"] == "lpips=alex.pth:sha256=abc"
    assert rows[0]["versions"] == "torch=2.4"


def test_json_is_strict_and_complete(tmp_path):
    scored = [scores("a", 10, 0.5), scores("c", math.inf, 0.0)]
    write_json(tmp_path / "s.json", scored, summarise(scored, {}), ORIGIN)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    contents = json.loads((tmp_path / "s.json").read_text(), parse_constant=refuse)
    assert contents["weights"]["lpips"]["sha256"] == "abc"
    assert contents["pairs"] == 2
    assert contents["images"][1]["standard"]["psnr"] == "inf"
    assert contents["images"][0]["enhanced"] == str(Path("out/a.jpg"))
    summary = contents["summary"]["standard"]
    assert summary["lpips"] == {"value": 0.25, "interval": [0, 0.5], "note": ""}
    assert summary["psnr"]["value"] == "inf" and summary["psnr"]["interval"] is None
