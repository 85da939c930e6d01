"""What scoring tells: means with intervals, a table, and CSV and JSON that name their sources."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from data.pairs import counted
from evaluation.fid import fid
from evaluation.scoring import LIMITED, NO_REFERENCE, Scores
from utils.files import atomic_path
from utils.metrics import GT_MEAN

METRICS = ("psnr", "ssim", "lpips", "fid")
NIQE = ("niqe_input", "niqe", "niqe_change")  # of the input, of the enhanced image, the difference
PER_IMAGE = ("psnr", "ssim", "lpips", *NIQE)
LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID"}
LABELS |= {"niqe_input": "NIQE input", "niqe": "NIQE", "niqe_change": "NIQE change"}
HIGHER_IS_BETTER = {metric: metric in ("psnr", "ssim") for metric in LABELS}
FORMATS = {"psnr": ".3f", "ssim": ".4f", "lpips": ".4f", "fid": ".2f"}
FORMATS |= {"niqe_input": ".3f", "niqe": ".3f", "niqe_change": "+.3f"}
PROTOCOL_LABELS = {GT_MEAN: "gt_mean (not comparable)", NO_REFERENCE: "no reference"}
REMARKS = {
    GT_MEAN: "gt_mean scales each enhanced image to the mean of its ground truth: its figures are "
    "not comparable with those of the other protocols"
}
UNMATCHED = {  # what is said of leftovers
    "gt": "without an enhanced image",
    "enhanced": "without a ground truth",
    "set_aside": "set aside, since only (1) of such names counts",
    "input": "of the inputs without a pair",
    "without_input": "without an input",
}

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
    return f"{value:{FORMATS[metric]}}"


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
    """Compute FID over all pairs, with a note on what it may be compared with."""
    count = len(scored)
    if count < 2:
        return Estimate(None, note="needs at least 2 images")
    features = np.stack([scores.features for scores in scored], axis=1)  # (2, N, 2048)
    note = (
        f"FID of {count} images against {count} is comparable only with FIDs of the same {count} "
        "images and the same split, since it depends on how many they are; BAID's test set has 368"
    )
    return Estimate(fid(*features), note=note)


def summarise(scored: Sequence[Scores], unavailable: Mapping[str, str]) -> Summary:
    """Estimate every metric that was computed, or say why there is none, for each protocol.

    Args:
        scored: at least one pair, all with the same protocols and metrics.
        unavailable: metric -> why it was not computed.
    """
    computed = {metric for values in scored[0].values.values() for metric in values}
    computed |= set(unavailable) | ({"fid"} if scored[0].features is not None else set())
    summary: Summary = {}
    for protocol, values in scored[0].values.items():
        estimates = {
            metric: estimate_mean([scores.values[protocol][metric] for scores in scored], protocol)
            for metric in values
        }
        for metric in METRICS if protocol != NO_REFERENCE else ():
            if metric not in computed:
                continue
            if protocol not in LIMITED.get(metric, (protocol,)):
                estimates[metric] = Estimate(None, note="not part of it")
            elif metric in unavailable:
                estimates[metric] = Estimate(None, note=f"unavailable: {unavailable[metric]}")
            elif metric == "fid":
                estimates[metric] = estimate_fid(scored)
        summary[protocol] = {
            metric: with_remark(estimate, protocol) for metric, estimate in estimates.items()
        }
    return summary


def with_remark(estimate: Estimate, protocol: str) -> Estimate:
    """Add to an estimate what has to be said of all figures of its protocol."""
    if estimate.value is None or protocol not in REMARKS:
        return estimate
    return replace(estimate, note="; ".join(filter(None, [estimate.note, REMARKS[protocol]])))


def tables(summary: Summary) -> list[tuple[list[str], dict[str, list[Estimate]]]]:
    """Lay the estimates out: the protocols side by side, then what needs no ground truth.

    Returns:
        Tables of a row for each metric; each is the protocols of its columns and its rows.
    """
    compared = [protocol for protocol in summary if protocol != NO_REFERENCE]
    groups = [compared, [NO_REFERENCE] if NO_REFERENCE in summary else []]
    return [
        (
            protocols,
            {
                metric: [summary[protocol][metric] for protocol in protocols]
                for metric in LABELS
                if metric in summary[protocols[0]]
            },
        )
        for protocols in groups
        if protocols
    ]


def table_lines(summary: Summary, count: int) -> list[str]:
    """Make the terminal's tables: a line for each metric, the protocols side by side."""
    noun = "image" if list(summary) == [NO_REFERENCE] else "pair"
    lines = [f"{counted(count, noun)}: mean over the images [95 % bootstrap interval]"]
    for protocols, rows in tables(summary):
        lines.append(f"{'':15}" + "".join(f"{label_of(protocol):28}" for protocol in protocols))
        for metric, estimates in rows.items():
            arrow = "\N{UPWARDS ARROW}" if HIGHER_IS_BETTER[metric] else "\N{DOWNWARDS ARROW}"
            label = f"{LABELS[metric]} {arrow}"
            cells = (f"{estimate.text(metric):28}" for estimate in estimates)
            lines.append(f"{label:15}" + "".join(cells))
    return [line.rstrip() for line in lines] + [f"note: {note}" for note in notes(summary)]


def label_of(protocol: str) -> str:
    """Name a protocol where people read it."""
    return PROTOCOL_LABELS.get(protocol, protocol)


def unmatched_line(leftovers: Mapping[str, Sequence[object]]) -> str:
    """Count the files without a partner; empty if all have one.

    What the released rule sets aside is no fault.
    """
    counts = {kind: len(leftovers.get(kind, ())) for kind in UNMATCHED if kind != "set_aside"}
    told = [f"{count} {UNMATCHED[kind]}" for kind, count in counts.items() if count]
    return f"{counted(sum(counts.values()), 'file')} without a partner: {', '.join(told)}" * bool(
        told
    )


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
    columns = [*image_record(scored[0]), "protocol", *PER_IMAGE, "remark", "weights", "versions"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", **UNICODE) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for scores in scored:
            for protocol, values in scores.values.items():
                row = image_record(scores) | {"protocol": protocol} | values
                row["remark"] = REMARKS.get(protocol)
                writer.writerow(row | {"weights": weights, "versions": versions})


def image_record(scores: Scores) -> dict[str, object]:
    """Name a pair's files, and their size."""
    width, height = scores.size
    return {
        "name": scores.pair.name,
        "gt": scores.pair.gt and str(scores.pair.gt),
        "enhanced": str(scores.pair.enhanced),
        "input": scores.pair.input and str(scores.pair.input),
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
