"""Judge the recipe of the default model on scenes that each training has not seen.

    python -m benchmarks.cross_validation PHOTOS WORK [--weights rave_paired ...]

Cuts the SICE scenes of PHOTOS into folds, trains the default model without each fold by
`pretrained_models/train_default.sh` into WORK/fold0 and so on, and scores it on the fold's scenes
as benchmarks/quality.py does. Prints means over all scenes and, in brackets, the spread: the
standard deviation of the folds' means. The same command goes on where an earlier one was ended.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np

from benchmarks.quality import Enhance, auto_gamma, figures_of, network, squares_of
from data.listing import list_photos
from utils import options
from utils.errors import WorkError, tell
from utils.script import exit_with

RECIPE = Path(__file__).parents[1] / "pretrained_models" / "train_default.sh"
REFERENCES = {"frame": "ref_frame", "fused": "gt"}
FIGURES = ("psnr", "ssim", "sky", "noise")
RELEASED = (
    *("clip_lit_latent_paired", "clip_lit_latent_unpaired", "clip_lit_original"),
    *("clip_lit_paired", "clip_lit_unpaired"),
    *("rave_paired", "rave_unpaired", "rave_unpaired_shifted"),
)


def main(args: argparse.Namespace) -> None:
    """Train what is missing, then print a Markdown table."""
    scenes = Path(args.photos) / "sice_backlit"
    names = sorted(Path(path).stem for path in list_photos(scenes / "input"))
    folds = [names[first :: args.folds] for first in range(args.folds)]
    enhancers = {
        "auto gamma": [auto_gamma] * len(folds),
        **{name: [network(name, 1.0)] * len(folds) for name in args.weights},
        "rave_default's recipe": [train(args, *numbered) for numbered in enumerate(folds)],
    }
    columns = [f"{name}, {figure}" for name in REFERENCES for figure in FIGURES[:2]]
    print(f"| | {' | '.join([*columns, *FIGURES[2:]])} |\n|---|{'---|' * (len(columns) + 2)}")
    for name, of_fold in enhancers.items():
        cells = row(of_fold, scenes, folds)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def train(args: argparse.Namespace, number: int, held_out: list[str]) -> Enhance:
    """Train the default model without a fold, unless that is done."""
    work = Path(args.work) / f"fold{number}"
    weights = work / "rave_default.pth"
    if not weights.is_file():
        tell(f"fold {number}: training without {' '.join(held_out)}")
        done = subprocess.run(["bash", RECIPE, args.photos, work, *held_out], check=False)
        if done.returncode:
            raise WorkError(f"{RECIPE.name} ended with status {done.returncode}")
    return network(str(weights), 1.0)


def row(enhancers: list[Enhance], scenes: Path, folds: list[list[str]]) -> list[str]:
    """Score the enhancer of each fold on its scenes: a table's cells."""
    values = []  # of each fold, (scenes, columns)
    for enhance, names in zip(enhancers, folds, strict=True):
        frame, fused = (
            np.array(
                [
                    [figures[name] for name in FIGURES]
                    for figures in figures_of(enhance, squares_of(scenes, reference, tuple(names)))
                ]
            )
            for reference in REFERENCES.values()
        )
        values.append(np.hstack([frame[:, :2], fused]))
    means, spread = np.vstack(values).mean(axis=0), np.std([v.mean(axis=0) for v in values], axis=0)
    places = [2, 3, 2, 3, 2, 2]
    return [
        f"{mean:.{n}f} ({deviation:.{n}f})"
        for mean, deviation, n in zip(means, spread, places, strict=True)
    ]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="as of pretrained_models/train_default.sh")
    parser.add_argument("work", help="a folder for the trainings")
    parser.add_argument("--folds", type=options.positive_int, default=6, help="(default: 6)")
    parser.add_argument("--weights", nargs="*", default=RELEASED, help="to compare with")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
