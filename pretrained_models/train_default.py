"""Train the default model again, and the brighter one.

    python -m pretrained_models.train_default PHOTOS WORK [--held_out SCENE ...] [--processes 2]

PHOTOS holds sice_backlit/{input,ref_frame,gt}, low_light, kodak24 and well_lit_bsds (see README.md
beside this file). WORK is a new folder; the weights end there, under the names that they have here.
The same command goes on where an earlier one was ended.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data import prepare
from data.listing import list_photos
from data.pairs import name_key
from pretrained_models.average import average
from utils import checkpoint, options
from utils.errors import UserError, WorkError, tell
from utils.script import exit_with
from utils.steps import call, keep_settings

HELD_OUT = ("1107", "116", "125", "1492", "1733", "190")  # every fifth of SICE's scenes
REFERENCES = {"frame": "ref_frame", "fused": "gt"}  # and their folders
SCENES = "sice_backlit/input"
SIMULATED = ("kodak24", "well_lit_bsds")  # darkened, with themselves as partners
BACKLIT = ("low_light",)  # without partners
COMMON = (
    *("--guidance_encoder", "timm/tf_efficientnet_lite0", "--guidance_stages", "1", "2", "3"),
    *("--identity_encoder", "timm/tf_efficientnet_lite0"),
    *("--paired_residual", "--start_light_map", "1"),
    *("--num_reconstruction_iters", "0", "--train_batch_size", "8", "--num_epochs", "100000"),
    *("--weight_decay", "0", "--lr_warmup_iters", "20", "--lr_cosine", "--clip_grad_norm", "20"),
    *("--ema_decay", "0.98", "--num_workers", "0", "--device", "cpu"),
)
SHORTER_SIDE = "256"  # pixels of the photographs that are prepared
FILE = "recipe.json"


@dataclass(frozen=True)
class Stage:
    """A run of train_rave.py.

    Attributes:
        name: of the run.
        start: the earlier stages from the mean of whose weights it starts; none: from scratch.
        references: the SICE scenes' partners, for a pair with each; twice counts twice.
        photos: other options of data.prepare.
        options: its own.
    """

    name: str
    start: tuple[str, ...]
    references: tuple[str, ...]
    photos: tuple[str, ...]
    options: tuple[str, ...]


BOTH, RATHER_FUSED = ("frame", "fused"), ("frame", "fused", "fused")
NIGHTS = ("--variants", "2", "--night", "0.5")
BASIC = ("--guidance_grid", "4", "--identity_scale", "0.5")
SMALL = ("--image_size", "112", "--train_lr", "0.0001")
# First frames and fused references alike, then the fused ones, which lift shadows and keep the sky,
# at a larger size. From the mean of both, two runs with many nights, of which the second one keeps
# less of the input. From the mean of those a last one.
STAGES = (
    Stage(
        name="first",
        start=(),
        references=BOTH,
        photos=("--crops", "2"),
        options=(*BASIC, "--image_size", "112", "--train_lr", "0.0002", "--max_iters", "1200"),
    ),
    Stage(
        name="second",
        start=("first",),
        references=("fused",),
        photos=("--crops", "5"),
        options=(*BASIC, "--image_size", "144", "--train_lr", "0.0001", "--max_iters", "300"),
    ),
    Stage(
        name="third",
        start=("first", "second"),
        references=RATHER_FUSED,
        photos=("--crops", "4", *NIGHTS),
        options=(*BASIC, *SMALL, "--max_iters", "350"),
    ),
    Stage(
        name="fourth",
        start=("first", "second"),
        references=RATHER_FUSED,
        photos=("--crops", "4", *NIGHTS),
        options=("--guidance_grid", "7", "--identity_scale", "0.25", *SMALL, "--max_iters", "350"),
    ),
    Stage(
        name="fifth",
        start=("third", "fourth"),
        references=BOTH,
        photos=("--crops", "5", *NIGHTS, "--seed", "1"),
        options=(
            *("--guidance_grid", "4", "--identity_scale", "0.45", "--seed", "3"),
            *(*SMALL, "--max_iters", "600"),
        ),
    ),
)
# Files and the stages whose mean they are.
RESULTS = {
    "rave_default.pth": ("third", "third", "fourth", "fourth", "fifth"),
    "rave_bright.pth": ("fifth",),
}


def main(args: argparse.Namespace) -> None:
    """Prepare the photographs of each stage and train it; save the means that are the models."""
    photos, work = Path(args.photos).resolve(), Path(args.work)
    held_out = sorted(args.held_out)
    check(photos, held_out)
    recipe = {"stages": [asdict(stage) for stage in STAGES], "common": COMMON, "results": RESULTS}
    endings = ("", "_photos", "_start.pth")
    names = [stage.name + ending for stage in STAGES for ending in endings]
    settings = {"photos": str(photos), "held_out": held_out} | recipe
    keep_settings(settings, work / FILE, [*names, *RESULTS])
    folders = [prepare_photos(stage, photos, work, held_out) for stage in STAGES]
    for stage, folder in zip(STAGES, folders, strict=True):
        train(stage, folder, work, args.processes)
    for file, stages in RESULTS.items():
        save_mean(stages, work, work / file)
    tell(f"the weights are in {work}: {', '.join(RESULTS)}")


def check(photos: Path, held_out: Sequence[str]) -> None:
    """Check that all sets are there, and the scenes to hold out among them.

    Raises:
        UserError: something is missing.
    """
    for name in SIMULATED + BACKLIT:
        list_photos(photos / name, recursive=True)
    scenes = {name_key(Path(path).stem) for path in list_photos(photos / SCENES)}
    for folder in REFERENCES.values():
        list_photos(photos / "sice_backlit" / folder)
    if unknown := [name for name in held_out if name_key(name) not in scenes]:
        raise UserError(f"--held_out {' '.join(unknown)}: no such scene in {photos / SCENES}")


def prepare_photos(stage: Stage, photos: Path, work: Path, held_out: Sequence[str]) -> Path:
    """Lay out a stage's photographs, unless that is done; returns the folder.

    Raises:
        WorkError: one of them cannot be read.
    """
    folder, unfinished = work / f"{stage.name}_photos", work / f"{stage.name}_photos.part"
    if folder.is_dir():
        return folder
    shutil.rmtree(unfinished, ignore_errors=True)
    words = [str(unfinished), "--size", SHORTER_SIDE, *stage.photos]
    for reference in stage.references:
        light = photos / "sice_backlit" / REFERENCES[reference]
        words += ["--pairs", str(photos / SCENES), str(light)]
    for name in SIMULATED:
        words += ["--simulate", str(photos / name)]
    for name in BACKLIT:
        words += ["--backlit", str(photos / name)]
    if prepare.main(prepare.parse_arguments([*words, "--exclude", *held_out])):
        raise WorkError(f"{photos} is not whole; the photographs are named above")
    unfinished.rename(folder)
    return folder


def train(stage: Stage, photos: Path, work: Path, processes: int) -> None:
    """Train a stage, or go on with it, unless that is done.

    Raises:
        WorkError: it ended without them.
    """
    weights = final(work, stage.name)
    if weights.is_file():
        return
    words = ["-b", str(photos / "backlit"), "-r", str(photos / "well_lit")]
    words += ["--save_dir", str(work), "--exp_name", stage.name, *COMMON, *stage.options]
    if stage.start:
        start = work / f"{stage.name}_start.pth"
        save_mean(stage.start, work, start)
        words += ["--unet_pretrain_dir", str(start)]
    words += ["--resume"] if (work / stage.name / "last.pt").is_file() else []
    status = call("train_rave.py", words, processes)
    if not weights.is_file():
        raise WorkError(
            f"train_rave.py ended with status {status} and without final weights; this command "
            "goes on when it is given again as it was"
        )


def save_mean(stages: Sequence[str], work: Path, path: Path) -> None:
    """Save the mean of stages' final weights."""
    states = [checkpoint.load_weights(final(work, name)) for name in stages]
    checkpoint.save_state_dict(average(states), path)


def final(work: Path, name: str) -> Path:
    """Where a stage's weights end up."""
    return work / name / "snapshots_model" / "final.pth"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = options.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="holds the sets")
    parser.add_argument("work", metavar="WORK", help="a new folder")
    parser.add_argument(
        "--held_out",
        nargs="+",
        default=HELD_OUT,
        metavar="SCENE",
        help="not trained on, like all of the name",
    )
    parser.add_argument(
        "--processes",
        type=options.positive_int,
        default=1,
        metavar="K",
        help="share each step out, by torchrun: as many as cores, up to 8 (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
