"""One HTML page to look at scores and images: no network, nothing beside it."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from data.pairs import counted
from evaluation.scoring import Scores
from evaluation.summary import UNICODE, Figure, Summary, mean_figure, notes, number
from utils.files import atomic_path
from utils.metrics import HIGHER_IS_BETTER, LABELS, METRICS, PER_IMAGE

PAGE = Path(__file__).with_name("report.html")
# Longer side of the previews: 100 images of three versions make a page of about 20 MB.
SIDE_OF_100, LARGEST_SIDE, SMALLEST_SIDE = 640, 960, 320
PREVIEW_QUALITY = 82  # of WebP
FRAMES = (0.7, 2.0)  # least and greatest aspect ratio of the frames, which fit most images

VERSIONS = {"input": "Input", "enhanced": "Enhanced", "gt": "Ground truth"}
PLOT_WIDTH, PLOT_HEIGHT, PLOT_FOOT = 300, 110, 22  # SVG units


def preview_side(count: int) -> int:
    """Longer side in pixels of the previews of so many pairs: the more, the smaller."""
    fitting = SIDE_OF_100 * math.sqrt(100 / max(1, count))
    return round(min(LARGEST_SIDE, max(SMALLEST_SIDE, fitting)))


def preview(pixels: np.ndarray, side: int) -> str:
    """Turn (H, W, 3) uint8 into a data URI of a picture of at most `side` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=PREVIEW_QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


class Report:
    """Collects images on disk while they are scored, then writes the page."""

    def __init__(self):
        self._cards = tempfile.TemporaryFile("w+", **UNICODE)  # noqa: SIM115

    def add(self, scores: Scores) -> None:
        """Take in a pair and its previews."""
        self._cards.write(card(scores))

    def write(
        self, path: str | Path, scored: Sequence[Scores], summary: Summary, origin: Mapping
    ) -> None:
        """Write the page whole or not at all.

        Args:
            path: ends with .html.
            scored: the pairs that were added, in the order of their names.
            summary: the table's figures.
            origin: "unmatched", "left_out", "versions" and "weights", to be listed.
        """
        aspects = [scores.size[0] / scores.size[1] for scores in scored]
        has_input = any(scores.pair.input for scores in scored)
        text = Template(PAGE.read_text(encoding="utf-8")).substitute(
            count=counted(len(scored), "image"),
            left_out=f" · {len(origin['left_out'])} left out" if origin["left_out"] else "",
            table=table(summary),
            notes="".join(f"<p class=note>{escape(note)}</p>" for note in notes(summary)),
            histograms=histograms(scored, summary),
            aspect=round(float(np.clip(np.median(aspects), *FRAMES)), 3),
            left="input" if has_input else "gt",
            left_choices=choices("left", has_input, "input" if has_input else "gt"),
            right_choices=choices("right", has_input, "enhanced"),
            sort_choices=sort_choices(summary),
            origin=listing(origin),
            cards="\0",
        )
        head, foot = text.split("\0")
        with atomic_path(path) as temporary, temporary.open("w", **UNICODE) as page:
            page.write(head)
            self._cards.seek(0)
            shutil.copyfileobj(self._cards, page)
            page.write(foot)


def card(scores: Scores) -> str:
    """An image with its slider and scores."""
    name = escape(scores.pair.name)
    width, height = scores.size
    pictures = "".join(
        f'<img data-version="{version}" src="{scores.previews[version]}" '
        f'alt="{VERSIONS[version]} of {name}" decoding="async" draggable="false">'
        for version in VERSIONS
        if version in scores.previews
    )
    sort_keys = "".join(
        f' data-{protocol}-{metric}="{json.dumps(value)}"'  # Infinity, as JavaScript has it
        for protocol, values in scores.values.items()
        for metric, value in values.items()
    )
    rows = "".join(
        f"<tr><th>{protocol}</th>"
        + "".join(
            f'<td data-key="{protocol}-{metric}"><small>{LABELS[metric]}</small> '
            f"{number(values[metric], metric)}</td>"
            for metric in PER_IMAGE
            if metric in values
        )
        + "</tr>"
        for protocol, values in scores.values.items()
    )
    return (
        f'<article class="card" data-name="{name}"{sort_keys}>'
        f'<div class="view">{pictures}'
        f'<span class="tag left"></span><span class="tag right"></span><i></i>'
        f'<input type="range" min="0" max="100" step="0.5" value="50" '
        f'aria-label="Compare versions of {name}"></div>'
        f"<h3>{name} <small>{width} × {height}</small></h3>"
        f'<table class="scores">{rows}</table></article>\n'
    )


def table(summary: Summary) -> str:
    """The figures, protocols side by side."""
    head = "".join(f"<th scope=col>{protocol}</th>" for protocol in summary)
    rows = []
    for metric in METRICS:
        figures = [by_metric[metric] for by_metric in summary.values() if metric in by_metric]
        if not figures:
            continue
        if len({figure.note for figure in figures}) == 1 and figures[0].value is None:
            text = escape(figures[0].text(metric))
            cells = f'<td class="none" colspan="{len(figures)}">{text}</td>'
        else:
            cells = "".join(cell(figure, metric) for figure in figures)
        rows.append(f"<tr><th scope=row>{LABELS[metric]} {arrow(metric)}</th>{cells}</tr>")
    return f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def arrow(metric: str) -> str:
    """Which way is better, for eyes and for screen readers."""
    if HIGHER_IS_BETTER[metric]:
        return '<abbr title="higher is better">↑</abbr>'
    return '<abbr title="lower is better">↓</abbr>'


def cell(figure: Figure, metric: str) -> str:
    """A figure, its interval in small print."""
    if figure.value is None:
        return f'<td class="none">{escape(figure.text(metric))}</td>'
    interval = ""
    if figure.interval:
        low, high = (number(end, metric) for end in figure.interval)
        interval = f" <small>{low} – {high}</small>"
    return f"<td><b>{number(figure.value, metric)}</b>{interval}</td>"


def histograms(scored: Sequence[Scores], summary: Summary) -> str:
    """A histogram for each metric of single images and each protocol."""
    plots = []
    for metric in PER_IMAGE:
        for protocol, figures in summary.items():
            if metric in figures and figures[metric].value is not None:
                values = [scores.values[protocol][metric] for scores in scored]
                infinite = sum(map(math.isinf, values))
                which = f"{protocol}, without {infinite} infinite" if infinite else protocol
                plots.append(
                    f"<figure><figcaption>{LABELS[metric]} <small>{which}</small></figcaption>"
                    f"{histogram(values, figures[metric], metric)}</figure>"
                )
    return "".join(plots)


def histogram(values: Sequence[float], figure: Figure, metric: str) -> str:
    """An SVG of how many images have which value, with the mean and its interval.

    Infinite values, of images that equal their ground truth, are not drawn; mean and interval are
    then those of the others.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "<p>all infinite</p>"
    if len(finite) < len(values):
        figure = mean_figure(finite)
    bins = min(24, max(5, math.ceil(2 * math.sqrt(len(finite)))))
    least, greatest = min(finite), max(finite)
    if greatest - least < 1e-6:  # but for rounding, all are equal
        least, greatest = least - 0.5, greatest + 0.5
    counts, edges = np.histogram(finite, bins, (least, greatest))
    scale = PLOT_WIDTH / (edges[-1] - edges[0])
    tallest = counts.max()
    parts = []

    def across(value: float) -> float:
        return (value - edges[0]) * scale

    if figure.interval:
        low, high = map(across, figure.interval)
        parts.append(
            f'<rect class="interval" x="{low:.1f}" y="0" width="{high - low:.1f}" '
            f'height="{PLOT_HEIGHT}"><title>95 % interval of the mean</title></rect>'
        )
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        tall = PLOT_HEIGHT * 0.86 * count / tallest
        parts.append(
            f'<rect class="bar" x="{across(low) + 0.75:.1f}" y="{PLOT_HEIGHT - tall:.1f}" '
            f'width="{PLOT_WIDTH / bins - 1.5:.1f}" height="{tall:.1f}">'
            f"<title>{count} from {number(low, metric)} to {number(high, metric)}</title></rect>"
        )
        if count == tallest:
            middle = across((low + high) / 2)
            parts.append(
                f'<text x="{middle:.1f}" y="{PLOT_HEIGHT - tall - 4:.1f}" '
                f'text-anchor="middle">{count}</text>'
            )
    mean = across(figure.value)
    parts.append(f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y2="{PLOT_HEIGHT}"/>')
    foot = PLOT_HEIGHT + PLOT_FOOT - 6
    for value, place, anchor in (
        (edges[0], 0, "start"),
        ((edges[0] + edges[-1]) / 2, PLOT_WIDTH / 2, "middle"),
        (edges[-1], PLOT_WIDTH, "end"),
    ):
        parts.append(
            f'<text x="{place}" y="{foot}" text-anchor="{anchor}">{number(value, metric)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT + PLOT_FOOT}" role="img" '
        f'aria-label="Histogram of {LABELS[metric]}, {counted(len(finite), "image")}">'
        f'<line class="axis" x2="{PLOT_WIDTH}" y1="{PLOT_HEIGHT}" y2="{PLOT_HEIGHT}"/>'
        f"{''.join(parts)}</svg>"
    )


def choices(side: str, has_input: bool, chosen: str) -> str:
    """Radio buttons for the version on one side of the sliders."""
    return "".join(
        f'<label><input type="radio" name="{side}" value="{version}"'
        f"{' checked' if version == chosen else ''}><span>{label}</span></label>"
        for version, label in VERSIONS.items()
        if has_input or version != "input"
    )


def sort_choices(summary: Summary) -> str:
    """Options to sort the images by."""
    keys = [
        (f"{protocol}-{metric}", f"{LABELS[metric]}, {protocol}", HIGHER_IS_BETTER[metric])
        for metric in PER_IMAGE
        for protocol, figures in summary.items()
        if metric in figures and figures[metric].value is not None
    ]
    return "".join(
        f'<option value="{key}" data-higher="{int(higher)}">{label}</option>'
        for key, label, higher in keys
    )


def listing(origin: Mapping) -> str:
    """Where the figures come from, and which files have no part in them."""
    text = json.dumps(origin, indent=2, ensure_ascii=False)
    return escape(text)
