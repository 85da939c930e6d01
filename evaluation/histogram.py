"""The histogram of a metric."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.summary import estimate_mean, number

BINS = (5, 24)  # as few and as many as are drawn
BAR, MARK, LINE, TEXT = "#2f6fdb", "#e8730c", "#e4e7ec", "#667085"


def draw_histogram(values: Sequence[float], metric: str) -> Figure:
    """Draw how many images have which of at least one finite value, their mean and its interval."""
    estimate = estimate_mean(values)
    low, high = min(values), max(values)
    if high - low < 1e-6:  # all are equal but for rounding
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(math.ceil(2 * math.sqrt(len(values))), *BINS))
    figure = Figure(figsize=(4, 1.8), layout="constrained")
    axes = figure.add_subplot(xlim=(low, high))
    if estimate.interval:
        axes.axvspan(*estimate.interval, color=MARK, alpha=0.16, linewidth=0, zorder=0)
    axes.hist(values, bins, range=(low, high), rwidth=0.95, color=BAR)
    axes.axvline(estimate.value, color=MARK)
    ticks = [low, (low + high) / 2, high]
    axes.set_xticks(ticks, [number(tick, metric) for tick in ticks])
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.tick_params(color=LINE, labelcolor=TEXT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    return figure


def as_svg(figure: Figure) -> bytes:
    """Write a drawing as SVG, the same bytes in every run."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": ""}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
