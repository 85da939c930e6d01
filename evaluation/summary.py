"""What scoring tells: means with intervals, a table, and CSV and JSON that name their sources."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from data.pairs import counted
from evaluation.fid import COMPARABLE, fid
from evaluation.scoring import Scores
from utils.files import atomic_path

METRICS = ("psnr", "ssim", "lpips", "fid")
PER_IMAGE = ("psnr", "ssim", "lpips")
LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID"}
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "fid": False}
DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "fid": 2}

RESAMPLES = 2000  # of the bootstrap
RESAMPLES_AT_ONCE = 100  # in memory
CONFIDENCE = 0.95
# How files are written; a file name that is no UTF-8 gets escapes.
UNICODE = {"encoding": "utf-8", "errors": "backslashreplace"}


@dataclass(frozen=True)
class Estimate:
    """A metric over all images under one protocol.

    Attributes:
        value: the mean over the images, or FID of the set; None if there is none.
        interval: the mean's 95 % bootstrap interval; FID, which is no mean, has none.
        note: why there is no value ("in short: at length"), or a caution about it.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    note: str = ""

    def text(self, metric: str) -> str:
        """Read as "10.565 [9.871, 11.216]" with the metric's digits, or as the note in short."""
        if self.value is None:
            return self.note.partition(":")[0]
        text = number(self.value, metric)
        if self.interval:
            text += " [" + ", ".join(number(end, metric) for end in self.interval) + "]"
        return text


Summary = dict[str, dict[str, Estimate]]  # protocol -> metric -> estimate


def number(value: float, metric: str) -> str:
    """Write a value with its metric's number of digits; infinity as "inf"."""
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


def estimate_mean(values: Sequence[float], protocol: str = "standard") -> Estimate:
    """Compute the mean of at least one value, and its bootstrap interval.

    An infinite value, which only PSNR has, makes the mean infinite; the note has the others' mean.
    """
    finite = [value for value in values if not math.isinf(value)]
    if len(finite) == len(values):
        return Estimate(float(np.mean(values)), bootstrap_interval(values))
    grey = " in grey" if protocol == "released" else ""
    equal = len(values) - len(finite)
    note = f"{equal} of {len(values)} images equal their ground truth{grey}: infinite PSNR"
    if finite:
        note += f"; the others have {estimate_mean(finite).text('psnr')}"
    return Estimate(math.inf, note=note)


def estimate_fid(scored: Sequence[Scores]) -> Estimate:
    """Compute FID over all pairs, with a warning where they are few."""
    count = len(scored)
    if count < 2:
        return Estimate(None, note="needs at least 2 images")
    features = np.stack([scores.features for scores in scored], axis=1)  # (2, N, 2048)
    note = ""
    if count < COMPARABLE:
        note = (
            f"FID of {count} images against {count}: with fewer than {COMPARABLE} it is "
            "biased, and not comparable with other figures"
        )
    return Estimate(fid(*features), note=note)


def summarise(scored: Sequence[Scores], unavailable: Mapping[str, str]) -> Summary:
    """Estimate every metric that was computed, or say why there is none, for each protocol.

    Args:
        scored: at least one pair, all with the same protocols and metrics.
        unavailable: metric -> why it was not computed.
    """
    with_fid = scored[0].features is not None
    summary: Summary = {}
    for protocol, values in scored[0].values.items():
        estimates = {
            metric: estimate_mean([scores.values[protocol][metric] for scores in scored], protocol)
            for metric in values
        }
        if with_fid and protocol == "standard":
            estimates["fid"] = estimate_fid(scored)
        for metric, why in unavailable.items():
            estimates[metric] = Estimate(None, note=f"unavailable: {why}")
        if protocol == "released" and (with_fid or "fid" in unavailable):
            estimates["fid"] = Estimate(None, note="not part of it")
        summary[protocol] = estimates
    return summary


def table_lines(summary: Summary, count: int) -> list[str]:
    """Make the terminal's table: a line for each metric, the protocols side by side."""
    lines = [
        f"{counted(count, 'pair')}: mean over the images [95 % bootstrap interval]",
        f"{'':13}" + "".join(f"{protocol:28}" for protocol in summary),
    ]
    for metric in METRICS:
        cells = [
            estimates[metric].text(metric) for estimates in summary.values() if metric in estimates
        ]
        if not cells:
            continue
        arrow = "\N{UPWARDS ARROW}" if HIGHER_IS_BETTER[metric] else "\N{DOWNWARDS ARROW}"
        label = f"{LABELS[metric]} {arrow}"
        lines.append(f"{label:13}" + "".join(f"{cell:28}" for cell in cells))
    return [line.rstrip() for line in lines] + [f"note: {note}" for note in notes(summary)]


def notes(summary: Summary) -> list[str]:
    """Collect cautions, and why metrics are unavailable, each sentence once."""
    sentences = [
        f"{metric.upper()} is {estimate.note}" if estimate.value is None else estimate.note
        for estimates in summary.values()
        for metric, estimate in estimates.items()
        if estimate.note != estimate.text(metric)  # which the table has
    ]
    return list(dict.fromkeys(filter(None, sentences)))


def write_csv(path: str | Path, scored: Sequence[Scores], origin: Mapping[str, object]) -> None:
    """Write a line for each image and protocol, with versions and weights.

    Args:
        path: written whole or not at all.
        scored: the pairs.
        origin: what the script's `describe_origin` gives.

    Raises:
        UserError: the file cannot be written.
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
    """Name a pair's files, and their size."""
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
    """Write the origin, the summary and every image's scores.

    An infinite PSNR is written as the text "inf", since JSON has no number for it.

    Raises:
        UserError: the file cannot be written.
    """
    contents = {
        **origin,
        "pairs": len(scored),
        "summary": {
            protocol: {
                metric: asdict(estimate) | {"value": _finite(estimate.value)}
                for metric, estimate in estimates.items()
            }
            for protocol, estimates in summary.items()
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
