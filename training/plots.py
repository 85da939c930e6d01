"""Plots for a run's folder, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor
from torchvision.utils import save_image

from models.enhancer import UNetEnhancer, enhance_images
from utils.files import atomic_path

BINS = (12, 40)  # least and most
BACKLIT_COLOUR, WELL_LIT_COLOUR = "#3b4a6b", "#e0a030"


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


@torch.no_grad()
def save_samples(
    path: Path, photos: Tensor, weights: Mapping[str, Tensor], device: torch.device, amp: bool
) -> None:
    """Draw photographs in a row, and below them what an enhancer makes of them.

    Args:
        path: the file.
        photos: (N, 3, H, W) in [0, 1].
        weights: the enhancer's; not the module in training, which may be compiled for other shapes.
        device: where it computes.
        amp: in bf16 autocast.
    """
    enhancer = UNetEnhancer().to(device)
    enhancer.load_state_dict(weights)
    enhanced = [
        enhance_images(enhancer, photo[None].to(device), amp).float().cpu() for photo in photos
    ]
    with atomic_path(path) as temporary:
        save_image(torch.cat([photos, *enhanced]), temporary, nrow=len(photos))
