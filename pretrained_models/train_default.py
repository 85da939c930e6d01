"""Train a shipped model again: the default, or with --model another.

    python -m pretrained_models.train_default PHOTOS WORK [--held_out SCENE ...] [--processes 2]
    python -m pretrained_models.train_default PHOTOS WORK --model rave_free [--processes 2]
    python -m pretrained_models.train_default PHOTOS WORK --model rave_fused [--processes 2]

PHOTOS holds the sets that README.md beside this file lists: sice_backlit/{input,ref_frame,gt},
low_light, kodak24 and well_lit_bsds for the default; kodak24 and wallpapers for rave_free; all of
them for rave_fused. WORK is a new folder; the weights end there, under the name that they have
here. The same command goes on where an earlier one was ended.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data import prepare
from data.listing import list_photos
from data.pairs import name_key
from utils import options
from utils.checkpoint import DEFAULT_WEIGHTS, PRETRAINED, find_weights
from utils.errors import UserError, WorkError, tell
from utils.files import atomic_path
from utils.script import exit_with
from utils.steps import call, keep_settings

HELD_OUT = ("1107", "1171", "1379", "1704", "1851")  # fold 0 of cross_validation.py
REFERENCES = {"frame": "ref_frame", "fused": "gt"}  # and their folders: a pair with each
SCENES = "sice_backlit/input"
PREPARATION = ("--size", "256", "--crops", "5", "--night", "0.5")
TRAINING = (
    *("--guidance_encoder", "timm/tf_efficientnet_lite0", "--guidance_stages", "1", "2", "3"),
    *("--guidance_grid", "7", "--paired_guidance"),
    *("--identity_encoder", "timm/tf_efficientnet_lite0", "--identity_scale", "0.1"),
    *("--start_light_map", "1", "--num_reconstruction_iters", "0", "--num_epochs", "100000"),
    *("--train_batch_size", "8", "--image_size", "96"),
    *("--train_lr", "0.0003", "--lr_warmup_iters", "20", "--lr_cosine", "--weight_decay", "0"),
    *("--clip_grad_norm", "20", "--ema_decay", "0.98", "--num_workers", "0", "--device", "cpu"),
)
PHOTOS, RUN = "photos", "run"  # in WORK, beside the weights


@dataclass(frozen=True)
class Recipe:
    """What a model learns from, and how long.

    Attributes:
        file: of its weights.
        iterations: of the enhancer.
        simulated: sets that are darkened, with themselves as partners.
        variants: simulations of each of their photographs.
        darkest: the least gain of linear light by night, above 0, at most 0.1.
        pairs: names and folders of the scenes' references, with each of which they make a pair.
        backlit: sets without partners.
        start: the shipped model that it starts from; none: from scratch.
    """

    file: str
    iterations: int
    simulated: tuple[str, ...]
    variants: int
    darkest: float
    pairs: Mapping[str, str] = field(default_factory=dict)
    backlit: tuple[str, ...] = ()
    start: str = ""


DEFAULT = Recipe(
    file=DEFAULT_WEIGHTS,
    iterations=450,
    simulated=("kodak24", "well_lit_bsds"),
    variants=2,
    darkest=0.005,
    pairs=REFERENCES,
    backlit=("low_light",),
)
FREE = Recipe(
    file="rave_free.pth",
    iterations=1050,
    simulated=("kodak24", "wallpapers"),
    variants=6,
    darkest=0.001,
)
FUSED = Recipe(
    file="rave_fused.pth",
    iterations=220,
    simulated=("kodak24", "wallpapers", "well_lit_bsds"),
    variants=2,
    darkest=0.001,
    pairs={"fused": REFERENCES["fused"]},
    backlit=("low_light",),
    start=FREE.file,
)
RECIPES = {Path(recipe.file).stem: recipe for recipe in (DEFAULT, FREE, FUSED)}


def main(args: argparse.Namespace) -> None:
    """Train the model and say where it is."""
    recipe = RECIPES[args.model]
    held_out = args.held_out or (HELD_OUT if recipe.pairs else ())
    path = train_model(Path(args.photos), Path(args.work), held_out, args.processes, recipe)
    tell(f"the weights are {path}")


def train_model(
    photos: Path,
    work: Path,
    held_out: Sequence[str],
    processes: int,
    recipe: Recipe,
) -> Path:
    """Prepare the photographs and train, unless that is done.

    Args:
        photos: holds the sets.
        work: a new folder, or one in which the same recipe was begun with the same photographs.
        held_out: SICE scenes not to train on; none for a recipe without pairs.
        processes: that share the training.
        recipe: of the model.

    Returns:
        The weights.

    Raises:
        UserError: a set or a scene is missing, or the folder has something else.
        WorkError: a photograph cannot be read, or the training ended early.
    """
    photos, held_out = photos.resolve(), sorted(held_out)
    check(photos, held_out, recipe)
    settings = {"photos": str(photos), "held_out": held_out, "model": asdict(recipe)}
    settings |= {"preparation": PREPARATION, "training": TRAINING}
    keep_settings(settings, work / "recipe.json", [PHOTOS, f"{PHOTOS}.part", RUN, recipe.file])
    prepare_photos(photos, work, held_out, recipe)
    train(work, processes, recipe)
    return work / recipe.file


def check(photos: Path, held_out: Sequence[str], recipe: Recipe) -> None:
    """Check that all sets are there, and the scenes to hold out among them.

    Raises:
        UserError: something is missing.
    """
    if held_out and not recipe.pairs:
        raise UserError(f"--held_out: {recipe.file} learns from no scene of SICE; leave it out")
    if recipe.start:
        find_weights(PRETRAINED / recipe.start)
    if not photos.is_dir():
        raise UserError(f"no folder {photos}; the card says what PHOTOS holds")
    for name in recipe.simulated + recipe.backlit:
        list_photos(photos / name, recursive=True)
    for folder in recipe.pairs.values():
        list_photos(photos / "sice_backlit" / folder)
    if not recipe.pairs:
        return
    scenes = {name_key(Path(path).stem) for path in list_photos(photos / SCENES)}
    if unknown := [name for name in held_out if name_key(name) not in scenes]:
        raise UserError(f"--held_out {' '.join(unknown)}: no such scene in {photos / SCENES}")


def prepare_photos(photos: Path, work: Path, held_out: Sequence[str], recipe: Recipe) -> None:
    """Lay out the photographs, unless that is done.

    Raises:
        WorkError: one of them cannot be read.
    """
    folder, unfinished = work / PHOTOS, work / f"{PHOTOS}.part"
    if folder.is_dir():
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    words = [str(unfinished), *PREPARATION, "--variants", str(recipe.variants)]
    words += ["--darkest", str(recipe.darkest)]
    words += ["--exclude", *held_out] if held_out else []
    for reference in recipe.pairs.values():
        words += ["--pairs", str(photos / SCENES), str(photos / "sice_backlit" / reference)]
    for name in recipe.simulated:
        words += ["--simulate", str(photos / name)]
    for name in recipe.backlit:
        words += ["--backlit", str(photos / name)]
    if prepare.main(prepare.parse_arguments(words)):
        raise WorkError(f"{photos} is not whole; the photographs are named above")
    unfinished.rename(folder)


def train(work: Path, processes: int, recipe: Recipe) -> None:
    """Train, or go on with it, unless that is done; copy the final weights.

    Raises:
        WorkError: it ended without them.
    """
    weights = work / RUN / "snapshots_model" / "final.pth"
    if not weights.is_file():
        words = ["-b", str(work / PHOTOS / "backlit"), "-r", str(work / PHOTOS / "well_lit")]
        words += ["--save_dir", str(work), "--exp_name", RUN, *TRAINING]
        words += ["--max_iters", str(recipe.iterations)]
        words += ["--unet_pretrain_dir", str(PRETRAINED / recipe.start)] if recipe.start else []
        words += ["--resume"] if (work / RUN / "last.pt").is_file() else []
        status = call("train_rave.py", words, processes)
        if not weights.is_file():
            raise WorkError(
                f"train_rave.py ended with status {status} and without final weights; this "
                "command goes on when it is given again as it was"
            )
    with atomic_path(work / recipe.file) as temporary:
        shutil.copyfile(weights, temporary)


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PHOTOS, WORK, --processes and --model to a parser."""
    parser.add_argument("photos", metavar="PHOTOS", help="holds the sets (see the card)")
    parser.add_argument("work", metavar="WORK", help="a new folder, for the trainings")
    parser.add_argument(
        "--processes",
        type=options.positive_int,
        default=1,
        metavar="K",
        help="share each step out, by torchrun: as many as cores, up to 8 (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        choices=list(RECIPES),
        default=Path(DEFAULT_WEIGHTS).stem,
        help="the recipe (default: %(default)s)",
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = options.ArgumentParser(description=__doc__)
    add_work_arguments(parser)
    parser.add_argument(
        "--held_out",
        nargs="+",
        default=[],
        metavar="SCENE",
        help="SICE scenes not to train on, like all of the name "
        f"(default: {', '.join(HELD_OUT)}; rave_free learns from none)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
