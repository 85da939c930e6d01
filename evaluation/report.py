"""One HTML page to look at scores and images: no network, no file beside it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.pairs import counted
from evaluation.scoring import Scores
from evaluation.summary import (
    HIGHER_IS_BETTER,
    LABELS,
    PER_IMAGE,
    UNICODE,
    Summary,
    label_of,
    notes,
    number,
    tables,
    unmatched_line,
)
from utils.files import atomic_path

VERSIONS = {"input": "Input", "enhanced": "Enhanced", "gt": "Ground truth"}
# Longer side of the previews: 100 images of three versions make a page of about 20 MB.
SIDE_OF_100, LARGEST_SIDE, SMALLEST_SIDE = 640, 960, 320
FRAMES = (0.7, 2.0)  # least and greatest aspect ratio of the frames, which fit most images


@dataclass
class Histogram:
    """How many images have which value of a metric under a protocol.

    Attributes:
        metric: of `PER_IMAGE`.
        protocol: that it was computed under.
        infinite: images that are left out, since they equal their ground truth.
        svg: the picture; None where all values are infinite.
    """

    metric: str
    protocol: str
    infinite: int
    svg: bytes | None


def preview_side(count: int) -> int:
    """Longer side in pixels of the previews of so many pairs: the more, the smaller."""
    fitting = SIDE_OF_100 * math.sqrt(100 / max(1, count))
    return round(min(LARGEST_SIDE, max(SMALLEST_SIDE, fitting)))


def write_report(
    path: str | Path, scored: Sequence[Scores], summary: Summary, origin: Mapping[str, object]
) -> None:
    """Write the page whole or not at all; previews pass through memory one by one.

    Args:
        path: an HTML file.
        scored: at least one pair, with its previews.
        summary: the table's estimates.
        origin: what the script's `describe_origin` gives.

    Raises:
        UserError: the file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "base64": as_base64, "label": label_of}
    there = {"enhanced"} | {"input" for scores in scored if scores.pair.input}
    there |= {"gt" for scores in scored if scores.pair.gt}
    aspects = [scores.size[0] / scores.size[1] for scores in scored]
    chunks = environment.get_template("report.html").generate(
        count=counted(len(scored), "image"),
        left_out=len(origin["left_out"]),
        tables=tables(summary),
        notes=[*notes(summary), *filter(None, [unmatched_line(origin["unmatched"])])],
        histograms=histograms(scored, summary),
        scored=scored,
        versions={version: label for version, label in VERSIONS.items() if version in there},
        left=next(version for version in ("input", "gt", "enhanced") if version in there),
        aspect=round(float(np.clip(np.median(aspects), *FRAMES)), 3),
        labels=LABELS,
        higher_is_better=HIGHER_IS_BETTER,
        origin=json.dumps(origin, indent=2, ensure_ascii=False),
    )
    with atomic_path(path) as temporary, temporary.open("w", **UNICODE) as page:
        page.writelines(chunks)


def as_base64(contents: bytes) -> str:
    """Encode a file's contents for a data URI."""
    return base64.b64encode(contents).decode("ascii")


def histograms(scored: Sequence[Scores], summary: Summary) -> list[Histogram]:
    """Draw a histogram for each metric of single images and each protocol."""
    from evaluation.histogram import as_svg, draw_histogram  # matplotlib takes long to import

    plots = []
    for metric in PER_IMAGE:
        for protocol, estimates in summary.items():
            if metric not in estimates or estimates[metric].value is None:
                continue
            values = [scores.values[protocol][metric] for scores in scored]
            finite = [value for value in values if math.isfinite(value)]
            svg = as_svg(draw_histogram(finite, metric)) if finite else None
            plots.append(Histogram(metric, protocol, len(values) - len(finite), svg))
    return plots
