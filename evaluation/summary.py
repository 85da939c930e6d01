"""What comes out of scoring: figures with intervals, a table, CSV and JSON that can be traced."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from data.pairs import counted
from evaluation import fid
from evaluation.scoring import Networks, Scores
from utils.files import atomic_path
from utils.metrics import DIGITS, HIGHER_IS_BETTER, LABELS, METRICS, PER_IMAGE

RESAMPLES = 2000  # of the bootstrap
RESAMPLES_AT_ONCE = 100  # in memory
CONFIDENCE = 0.95
# How all is written; a file name that is no UTF-8 gets escapes.
UNICODE = {"encoding": "utf-8", "errors": "backslashreplace"}


@dataclass(frozen=True)
class Figure:
    """A metric over all images under one protocol.

    Attributes:
        value: the mean over images, or FID of the set; None if there is none.
        interval: its 95 % bootstrap interval; FID, which is no mean, has none.
        note: why there is no value ("in short: at length"), or what to keep in mind with it.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    note: str = ""

    def text(self, metric: str) -> str:
        """Read as "10.565 [9.871, 11.216]" with the metric's digits, or as the note in short."""
        if self.value is None:
            return self.note.partition(":")[0]
        low_high = ""
        if self.interval:
            low_high = " [" + ", ".join(number(end, metric) for end in self.interval) + "]"
        return number(self.value, metric) + low_high


Summary = dict[str, dict[str, Figure]]  # protocol -> metric -> figure


def number(value: float, metric: str) -> str:
    """Write a value with as many digits as its metric deserves; infinity as "inf"."""
    return f"{value:.{DIGITS[metric]}f}"


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % percentile bootstrap interval of the mean, with a fixed seed.

    Returns:
        (low, high); None for fewer than two values or infinite ones, which have no interval.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    low, high = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(low), float(high)


def mean_figure(values: Sequence[float], protocol: str = "standard") -> Figure:
    """Mean and bootstrap interval of at least one value.

    An infinite value, which only PSNR has, makes the mean infinite; the note has the others'.
    """
    finite = [value for value in values if not math.isinf(value)]
    if len(finite) == len(values):
        return Figure(float(np.mean(values)), bootstrap_interval(values))
    grey = " in grey" if protocol == "released" else ""
    equal = len(values) - len(finite)
    note = f"{equal} of {len(values)} images equal their ground truth{grey}: infinite PSNR"
    if finite:
        note += f"; the others have {mean_figure(finite).text('psnr')}"
    return Figure(math.inf, note=note)


def fid_figure(networks: Networks) -> Figure:
    """FID of the whole set, with the warning that few images deserve."""
    count = networks.gt.count
    if count < 2:
        return Figure(None, note="needs at least 2 images")
    note = ""
    if count < fid.COMPARABLE:
        note = (
            f"FID of {count} images against {count}: with fewer than {fid.COMPARABLE} it is "
            "biased, and not comparable with other figures"
        )
    return Figure(fid.fid(networks.gt, networks.enhanced), note=note)


def summarise(
    scored: Sequence[Scores],
    protocols: Sequence[str],
    wanted: Sequence[str],
    unavailable: Mapping[str, str],
    networks: Networks,
) -> Summary:
    """Put every metric's figure, or why there is none, under its protocol.

    Args:
        scored: at least one pair.
        protocols: of `PROTOCOLS`.
        wanted: metrics that were computed.
        unavailable: metric -> why it was not.
        networks: hold the statistics for FID.
    """
    summary: Summary = {}
    for protocol in protocols:
        figures = {
            metric: mean_figure([scores.values[protocol][metric] for scores in scored], protocol)
            for metric in PER_IMAGE
            if metric in wanted
        }
        if "fid" in wanted:
            figures["fid"] = fid_figure(networks)
        for metric, why in unavailable.items():
            figures[metric] = Figure(None, note=f"unavailable: {why}")
        if protocol == "released" and "fid" in figures:
            figures["fid"] = Figure(None, note="not part of it")
        summary[protocol] = figures
    return summary


def table_lines(summary: Summary, count: int) -> list[str]:
    """The table for the terminal: a line for each metric, the protocols side by side."""
    lines = [
        f"{counted(count, 'pair')}: mean over the images [95 % bootstrap interval]",
        f"{'':13}" + "".join(f"{protocol:28}" for protocol in summary),
    ]
    for metric in METRICS:
        cells = [figures[metric].text(metric) for figures in summary.values() if metric in figures]
        if not cells:
            continue
        arrow = "\N{UPWARDS ARROW}" if HIGHER_IS_BETTER[metric] else "\N{DOWNWARDS ARROW}"
        label = f"{LABELS[metric]} {arrow}"
        lines.append(f"{label:13}" + "".join(f"{cell:28}" for cell in cells))
    return [line.rstrip() for line in lines] + [f"note: {note}" for note in notes(summary)]


def notes(summary: Summary) -> list[str]:
    """What to keep in mind with figures, and why some are unavailable, each sentence once."""
    sentences = [
        figure.note if figure.value is not None else f"{metric.upper()} is {figure.note}"
        for by_metric in summary.values()
        for metric, figure in by_metric.items()
        if figure.note != figure.text(metric)
    ]
    return list(dict.fromkeys(filter(None, sentences)))


def write_csv(path: str | Path, scored: Sequence[Scores], origin: Mapping[str, object]) -> None:
    """Write a line for each image and protocol, with what its figures come from.

    Args:
        path: written whole or not at all.
        scored: the pairs.
        origin: what `describe_origin` of the script says: "versions" and "weights" are used.
    """
    versions = " ".join(f"{name}={text}" for name, text in origin["versions"].items())
    weights = " ".join(
        f"{metric}={file['file']}:sha256={file['sha256']}"
        for metric, file in origin["weights"].items()
    )
    columns = [*image_record(scored[0]), "protocol", *PER_IMAGE, "weights", "versions"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", **UNICODE) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for scores in scored:
            for protocol, values in scores.values.items():
                row = image_record(scores) | {"protocol": protocol} | values
                writer.writerow(row | {"weights": weights, "versions": versions})


def image_record(scores: Scores) -> dict[str, object]:
    """Which files a pair's scores belong to, and their size."""
    width, height = scores.size
    return {
        "name": scores.pair.name,
        "gt": str(scores.pair.gt),
        "enhanced": str(scores.pair.enhanced),
        "width": width,
        "height": height,
    }


def write_json(
    path: str | Path, scored: Sequence[Scores], summary: Summary, origin: Mapping[str, object]
) -> None:
    """Write everything: where the figures come from, the summary, every image's scores.

    An infinite PSNR is written as the text "inf", since JSON has no number for it.
    """
    contents = {
        **origin,
        "pairs": len(scored),
        "summary": {
            protocol: {
                metric: {
                    "value": _finite(figure.value),
                    "interval": figure.interval,
                    "note": figure.note,
                }
                for metric, figure in figures.items()
            }
            for protocol, figures in summary.items()
        },
        "images": [
            image_record(scores)
            | {
                protocol: {metric: _finite(value) for metric, value in values.items()}
                for protocol, values in scores.values.items()
            }
            for scores in scored
        ],
    }
    text = json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", **UNICODE)


def _finite(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value
