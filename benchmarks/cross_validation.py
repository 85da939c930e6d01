"""Judge the recipe of a shipped model on scenes that each training has not seen.

    python -m benchmarks.cross_validation PHOTOS WORK [--folds 6] [--processes 2] [--weights ...]
    python -m benchmarks.cross_validation PHOTOS WORK --model rave_fused

Cuts the SICE scenes of PHOTOS into folds, trains the model without each fold as
pretrained_models/train_default.py does, in WORK/fold0 and so on, and scores it on the fold's scenes
as benchmarks/quality.py does. Prints each fold's means as soon as it is scored; at the end a table
of them and of the means over all scenes, with the spread in brackets: the standard deviation of the
folds' means. The same command goes on where an earlier one was ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality import Enhance, Scene, artefacts, auto_gamma, compare, network, scenes_of
from data.listing import list_photos
from pretrained_models import train_default
from pretrained_models.train_default import RECIPES, REFERENCES
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
    if not RECIPES[args.model].pairs:
        raise UserError(
            f"{args.model} learns from none of the scenes, so there is nothing to train; "
            f"give it as --weights {args.model} beside another --model"
        )
    names = sorted(Path(path).stem for path in list_photos(sice / "input"))
    if not 2 <= args.folds <= len(names):
        raise UserError(f"--folds must be 2 to {len(names)}, the number of scenes")
    folds = [names[first :: args.folds] for first in range(args.folds)]
    scenes = [scenes_of(sice, REFERENCES, fold) for fold in folds]
    how = dict(auto_exposure=args.auto_exposure)
    exposed = ", auto exposure" if args.auto_exposure else ""
    known = {f"{name}{exposed}": network(name, **how) for name in args.weights} | {
        "auto gamma": auto_gamma
    }
    where = str(Path(args.photos).resolve())
    settings = {"photos": where, "folds": args.folds, "model": args.model}
    folders = [f"fold{number}" for number in range(args.folds)]
    keep_settings(settings, Path(args.work) / "folds.json", folders)
    of_folds = []
    for number, (fold, held_out) in enumerate(zip(folds, scenes, strict=True)):
        path = train_without(fold, number, args)
        of_folds.append(scores_of(network(str(path), **how), held_out))
        tell(row(f"without {' '.join(fold)}", of_folds[-1:]))
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, enhance in known.items():
        print(row(name, [scores_of(enhance, held_out) for held_out in scenes]), flush=True)
    for fold, scores in zip(folds, of_folds, strict=True):
        print(row(f"the recipe without {' '.join(fold)}", [scores]))
    print(row(f"the recipe{exposed}", of_folds))


def train_without(held_out: Sequence[str], number: int, args: argparse.Namespace) -> Path:
    """Train the model without a fold, unless that is done; returns its weights."""
    tell(f"fold {number}, without {' '.join(held_out)}")
    photos, work = Path(args.photos), Path(args.work) / f"fold{number}"
    recipe = RECIPES[args.model]
    return train_default.train_model(photos, work, held_out, args.processes, recipe)


def scores_of(enhance: Enhance, scenes: Sequence[Scene]) -> np.ndarray:
    """Score an enhancer on scenes: (scenes, columns)."""
    rows = []
    for scene in scenes:
        result = enhance(scene.photo)
        figures = compare(scene, result) | {"artefacts": artefacts(scene.photo, result)}
        rows.append([figures[group][figure] for group, figure, _ in COLUMNS.values()])
    return np.array(rows)


def row(name: str, scores: Sequence[np.ndarray]) -> str:
    """A row of a table from the folds' scores: the mean of all, and how the folds' means spread."""
    means = np.vstack(scores).mean(axis=0)
    spread = np.std([fold.mean(axis=0) for fold in scores], axis=0)
    cells = [name]
    for mean, deviation, (*_, digits) in zip(means, spread, COLUMNS.values(), strict=True):
        brackets = f" ({deviation:.{digits}f})" if len(scores) > 1 else ""
        cells.append(f"{mean:.{digits}f}{brackets}")
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train_default.add_work_arguments(parser)
    parser.add_argument(
        "--folds",
        type=options.positive_int,
        default=6,
        help="each is a training (default: 6)",
    )
    parser.add_argument(
        "--weights", nargs="*", default=[], help="to compare with, as inference.py takes them"
    )
    parser.add_argument(
        "--auto_exposure",
        action="store_true",
        help="expose the networks' results as inference.py does with it",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
