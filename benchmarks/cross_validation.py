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

from benchmarks.quality import Enhance, artefacts, auto_gamma, network, squares_of
from data.listing import list_photos
from pretrained_models import train_default
from pretrained_models.train_default import REFERENCES
from utils import options
from utils.errors import UserError, tell
from utils.metrics import fidelity
from utils.script import exit_with
from utils.steps import keep_settings

COLUMNS = [f"{name}, {figure}" for name in REFERENCES for figure in ("dB", "SSIM")]
COLUMNS += ["highlights", "noise"]
DIGITS = (2, 3, 2, 3, 2, 2)


def main(args: argparse.Namespace) -> None:
    """Train what is missing, then print a Markdown table."""
    scenes = Path(args.photos) / "sice_backlit"
    names = sorted(Path(path).stem for path in list_photos(scenes / "input"))
    if not 2 <= args.folds <= len(names):
        raise UserError(f"--folds must be 2 to {len(names)}, the number of scenes")
    settings = {"photos": str(Path(args.photos).resolve()), "folds": args.folds}
    of_folds = [f"fold{number}" for number in range(args.folds)]
    keep_settings(settings, Path(args.work) / "folds.json", of_folds)
    folds = [names[first :: args.folds] for first in range(args.folds)]
    enhancers = {
        "auto gamma": [auto_gamma] * len(folds),
        **{name: [network(name, 1.0)] * len(folds) for name in args.weights},
        "the recipe": [train(args, number, fold) for number, fold in enumerate(folds)],
    }
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, of_fold in enhancers.items():
        values = [
            scores_of(enhance, scenes, fold) for enhance, fold in zip(of_fold, folds, strict=True)
        ]
        means = np.vstack(values).mean(axis=0)
        spread = np.std([fold.mean(axis=0) for fold in values], axis=0)
        cells = [
            f"{mean:.{digits}f} ({deviation:.{digits}f})"
            for mean, deviation, digits in zip(means, spread, DIGITS, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def train(args: argparse.Namespace, number: int, held_out: Sequence[str]) -> Enhance:
    """Train the default model without a fold, unless that is done."""
    work = Path(args.work) / f"fold{number}"
    tell(f"fold {number}, without {' '.join(held_out)}")
    named = dict(photos=args.photos, work=str(work), held_out=list(held_out))
    train_default.main(argparse.Namespace(**named, processes=args.processes))
    return network(str(work / "rave_default.pth"), 1.0)


def scores_of(enhance: Enhance, scenes: Path, names: Sequence[str]) -> np.ndarray:
    """Score an enhancer on named scenes: (scenes, columns)."""
    rows = []
    for pairs in zip(
        *(squares_of(scenes, each, names) for each in REFERENCES.values()), strict=True
    ):
        photo = pairs[0][0]
        result = enhance(photo)
        figures = [fidelity(reference, result, "standard") for _, reference in pairs]
        row = [figure for each in figures for figure in (each["psnr"], each["ssim"])]
        rows.append([*row, *artefacts(photo, result).values()])
    return np.array(rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", metavar="PHOTOS", help="holds the sets (see the card)")
    parser.add_argument("work", metavar="WORK", help="a new folder, for the trainings")
    parser.add_argument(
        "--folds", type=options.positive_int, default=6, help="and trainings (default: 6)"
    )
    parser.add_argument(
        "--processes",
        type=options.positive_int,
        default=1,
        metavar="K",
        help="that share each training, by torchrun (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", nargs="*", default=[], help="to compare with, as inference.py takes them"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
