"""Judge the recipe of the default model on scenes that each training has not seen.

    python -m benchmarks.cross_validation PHOTOS WORK [--folds 6] [--processes 2] [--weights ...]

Cuts the SICE scenes of PHOTOS into folds, trains the default model without each fold as
pretrained_models/train_default.py does, in WORK/fold0 and so on, and scores it on the fold's scenes
as benchmarks/quality.py does. Prints means over all scenes and, in brackets, the spread: the
standard deviation of the folds' means. The same command goes on where an earlier one was ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality import Enhance, Scene, artefacts, auto_gamma, compare, network, scenes_of
from data.listing import list_photos
from pretrained_models import train_default
from pretrained_models.train_default import REFERENCES
from utils import options
from utils.errors import UserError, tell
from utils.script import exit_with
from utils.steps import keep_settings

COLUMNS = {  # title -> of what, which figure, digits
    "frame dB": ("frame", "psnr", 2),
    "frame SSIM": ("frame", "ssim", 3),
    "fused dB": ("fused", "psnr", 2),
    "fused SSIM": ("fused", "ssim", 3),
    "highlights": ("artefacts", "highlights", 2),
    "noise": ("artefacts", "noise", 2),
}


def main(args: argparse.Namespace) -> None:
    """Train what is missing, then print a Markdown table."""
    sice = Path(args.photos) / "sice_backlit"
    names = sorted(Path(path).stem for path in list_photos(sice / "input"))
    if not 2 <= args.folds <= len(names):
        raise UserError(f"--folds must be 2 to {len(names)}, the number of scenes")
    folds = [names[first :: args.folds] for first in range(args.folds)]
    scenes = [scenes_of(sice, REFERENCES, fold) for fold in folds]
    enhancers = {name: [network(name, 1.0)] * len(folds) for name in args.weights}
    settings = {"photos": str(Path(args.photos).resolve()), "folds": args.folds}
    folders = [f"fold{number}" for number in range(args.folds)]
    keep_settings(settings, Path(args.work) / "folds.json", folders)
    enhancers |= {
        "auto gamma": [auto_gamma] * len(folds),
        "the recipe": [train_without(fold, number, args) for number, fold in enumerate(folds)],
    }
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, of_folds in enhancers.items():
        cells = mean_cells(list(map(scores_of, of_folds, scenes)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def train_without(held_out: Sequence[str], number: int, args: argparse.Namespace) -> Enhance:
    """Train the default model without a fold, unless that is done."""
    tell(f"fold {number}, without {' '.join(held_out)}")
    photos, work = Path(args.photos), Path(args.work) / f"fold{number}"
    path = train_default.train_model(photos, work, held_out, args.processes)
    return network(str(path), 1.0)


def scores_of(enhance: Enhance, scenes: Sequence[Scene]) -> np.ndarray:
    """Score an enhancer on scenes: (scenes, columns)."""
    rows = []
    for scene in scenes:
        result = enhance(scene.photo)
        figures = compare(scene, result) | {"artefacts": artefacts(scene.photo, result)}
        rows.append([figures[group][figure] for group, figure, _ in COLUMNS.values()])
    return np.array(rows)


def mean_cells(scores: Sequence[np.ndarray]) -> list[str]:
    """Cells of a table from the folds' scores: the mean of all, and how the folds' means spread."""
    means = np.vstack(scores).mean(axis=0)
    spread = np.std([fold.mean(axis=0) for fold in scores], axis=0)
    return [
        f"{mean:.{digits}f} ({deviation:.{digits}f})"
        for mean, deviation, (*_, digits) in zip(means, spread, COLUMNS.values(), strict=True)
    ]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train_default.add_work_arguments(parser)
    parser.add_argument(
        "--folds", type=options.positive_int, default=6, help="and trainings (default: 6)"
    )
    parser.add_argument(
        "--weights", nargs="*", default=[], help="to compare with, as inference.py takes them"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
