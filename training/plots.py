"""Plots for a run's folder, drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor
from torchvision.utils import save_image

from models.enhancer import UNetEnhancer, enhance_images
from training.schedule import OF_ENHANCER, OF_GUIDANCE, STAGES
from utils.files import atomic_path

BINS = (12, 40)  # least and most
BACKLIT_COLOUR, WELL_LIT_COLOUR = "#3b4a6b", "#e0a030"
# Of the curves: the axis, the stages, and what the columns of log.csv are called.
PANELS = (
    ("loss", OF_ENHANCER, {"loss": "whole", "guidance": "guidance", "identity": "identity"}),
    ("guidance's own loss", OF_GUIDANCE, {"loss": "whole"}),
    ("PSNR (dB)", STAGES, {"psnr": "of the warm-up, to the input", "val_psnr": "validation"}),
    ("SSIM", STAGES, {"val_ssim": "validation"}),
    ("P(backlit)", STAGES, {"p_backlit": "enhanced images, mean"}),
)


def save_histogram(
    path: str | Path,
    backlit: ArrayLike,
    well_lit: ArrayLike,
    label: str,
    threshold: float | None = None,
    title: str = "",
) -> None:
    """Plot the histograms of a score over the backlit and the well-lit folder.

    Args:
        path: the PNG to write.
        backlit: scores of the backlit images, (N,).
        well_lit: scores of the well-lit images, (M,).
        label: of the score's axis, "cos(E(x), r)" or "P(backlit)".
        threshold: t of the residual guidance (docs/method.md 5), marked by a line; None marks none.
        title: above the plot, for instance the encoder's name.

    Raises:
        UserError: the file cannot be written.
    """
    backlit, well_lit = np.asarray(backlit), np.asarray(well_lit)
    marked = [] if threshold is None else [threshold]
    everything = np.concatenate([backlit, well_lit, marked])
    low, high = everything.min(), everything.max()
    bins = int(np.clip(2 * np.sqrt(everything.size), *BINS))
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for scores, name, colour in (
        (backlit, "backlit", BACKLIT_COLOUR),
        (well_lit, "well-lit", WELL_LIT_COLOUR),
    ):
        # Shares of a folder, so that folders of different sizes compare.
        shares = np.full(len(scores), 100 / len(scores))
        legend = f"{name}, {len(scores)} images"
        axes.hist(scores, edges, weights=shares, alpha=0.65, color=colour, label=legend)
    for value in marked:
        axes.axvline(value, color="black", linestyle="--", label=f"t = {value:.4f}")
    axes.set(xlabel=label, ylabel="% of the folder's images", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


@dataclass
class Samples:
    """The photographs of a run's grids of samples.

    Attributes:
        photos: (N, 3, H, W) in [0, 1].
        device: where the enhancer computes.
        amp: in bf16 autocast.
    """

    photos: Tensor
    device: torch.device
    amp: bool = False

    def grid_bytes(self) -> int:
        """About the size of a grid's file: the photographs as PNG, twice."""
        buffer = io.BytesIO()
        save_image(self.photos, buffer, format="png")
        return 2 * buffer.tell()

    @torch.no_grad()
    def save(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Draw the photographs in a row, and below them what an enhancer makes of them.

        Args:
            path: the file.
            weights: the enhancer's; not the module in training, which may be compiled for other
                shapes.
        """
        enhancer = UNetEnhancer().to(self.device)
        enhancer.load_state_dict(weights)
        enhanced = [
            enhance_images(enhancer, photo[None].to(self.device), self.amp).float().cpu()
            for photo in self.photos
        ]
        with atomic_path(path) as temporary:
            save_image(torch.cat([self.photos, *enhanced]), temporary, nrow=len(self.photos))


def save_curves(path: str | Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Draw a run's log over the iterations of all its stages, a panel for each kind of figure.

    Args:
        path: the PNG to write.
        rows: of log.csv, at least one, by its columns; what is empty or infinite is not drawn.

    Raises:
        UserError: the file cannot be written.
    """
    steps, starts = over_all_stages(rows)
    panels = []
    for label, stages, columns in PANELS:
        lines = {
            legend: [
                (step, float(row[column]))
                for step, row in zip(steps, rows, strict=True)
                if row["stage"] in stages and row.get(column) and math.isfinite(float(row[column]))
            ]
            for column, legend in columns.items()
        }
        panels += [(label, lines)] if any(lines.values()) else []
    figure = Figure(figsize=(9, 2.2 * len(panels) + 0.6), layout="constrained")
    for axes, (label, lines) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        for legend, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), ".-", ms=3, lw=1, label=legend)
        for start in starts:
            axes.axvline(start, color="0.85", lw=0.8, zorder=0)
        if "loss" in label and min(y for points in lines.values() for _, y in points) > 0:
            axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("iterations of the run; grey lines begin its stages")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def over_all_stages(rows: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
    """Count the iterations of a log's lines over all stages, the guidance's too.

    Returns:
        The iterations at each line, and where the stages begin.
    """
    steps, starts, stage, done = [], [0], None, 0
    for row in rows:
        if stage not in (None, (row["stage"], row["round"])):
            starts.append(starts[-1] + done)
        stage, done = (row["stage"], row["round"]), int(row["stage_iteration"])
        steps.append(starts[-1] + done)
    return steps, starts
