"""Train, enhance and score what the paper compares, and write one table.

    python reproduce.py --data DATA --output reproduced/ [--budget 0.01] [--systems rave_paired ...]

DATA holds the sets as their makers lay them out; any may be missing:

    BAID/train/input  BAID/train/gt  BAID/test/input  BAID/test/gt
    LOL-v1/our485/low  LOL-v1/our485/high  LOL-v1/eval15/low  LOL-v1/eval15/high
    DIV2K/DIV2K_train_HR

BAID trains, LOL-v1 where BAID is missing; DIV2K has the well-lit photographs of unpaired training.
What is done is kept: the same command goes on where an earlier one was ended.

Exit status: 0 done; 1 a system failed, or photographs were left out; 2 refused before work began;
130 and 143 ended by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.datasets import batches_per_epoch
from data.listing import list_photos
from evaluation.comparison import row_of, write_tables
from training.stages import COLLAPSE_AFTER, RESTART_ITERS
from utils import checkpoint, options
from utils.errors import SOME_LEFT_OUT, UserError, WorkError, tell, warn
from utils.script import exit_with
from utils.steps import call, keep_settings

# Set -> folders of training inputs and ground truth, of test inputs and ground truth:
PAIRED_SETS = {
    "BAID": ("train/input", "train/gt", "test/input", "test/gt"),
    "LOL-v1": ("our485/low", "our485/high", "eval15/low", "eval15/high"),
}
WELL_LIT = "DIV2K/DIV2K_train_HR"
SHIFTED_BY = 15  # tokens
# The published lengths (docs/method.md 4 and 7), which are the scripts' defaults:
EPOCHS, BATCH_SIZE = {"train.py": 3000, "train_rave.py": 2000}, 8
ENHANCER_STAGES = {"num_reconstruction_iters": 1000, "round_iters": 2100}
GUIDANCE_STAGES = {"num_clip_pretrained_iters": 8000, "refinement_iters": 1000}
# Iterations of a shortened warm-up at least, which notice that an enhancer has collapsed:
LEAST_WARM_UP = COLLAPSE_AFTER + 50
# Options of the scripts that are passed on, where they are given:
TO_TRAINING = (
    *("guidance_encoder", "clip_weights", "identity_encoder", "identity_weights"),
    *("image_size", "train_batch_size", "num_workers", "device"),
)
TO_METRICS = ("lpips_weights", "fid_weights", "device")
# What a finished part depends on; another command must not go on with it.
FIXED = ("data", "budget", "train_options", *TO_TRAINING[:6])
FILE = "reproduce.json"
LAYOUT = 2  # of what the options of a training are made of
UNSET, HERE = object(), "set here"  # stand for options that --train_options leaves alone
RESULTS = ("runs", "enhanced", "scores", "table.md", "table.csv")


@dataclass(frozen=True)
class System:
    """What is trained: a method, on pairs or not.

    Attributes:
        name: also of the published checkpoint.
        script: that trains it.
        method: its own options.
        paired: whether the well-lit photographs show the same scenes.
        needs_text: whether the guidance encoder needs a text side.
    """

    name: str
    script: str
    method: tuple[str, ...]
    paired: bool
    needs_text: bool = False

    @property
    def epochs(self) -> int:
        """The published length."""
        return EPOCHS[self.script]

    @property
    def stages(self) -> dict[str, int]:
        """The published iterations of the stages, by the options' names."""
        return ENHANCER_STAGES | (GUIDANCE_STAGES if self.script == "train.py" else {})

    @property
    def thresholds(self) -> list[str]:
        """The options that let a stage go on for its loss."""
        return ["thre_train", *(["thre_prompt"] if self.script == "train.py" else [])]


def systems_of(paired: bool) -> list[System]:
    """The three methods, with pairs or without."""
    kind = "paired" if paired else "unpaired"
    clip_lit, latent = (("--mode", mode) for mode in ("clip-lit", "clip-lit-latent"))
    return [
        System(f"clip_lit_{kind}", "train.py", clip_lit, paired, needs_text=True),
        System(f"clip_lit_latent_{kind}", "train.py", latent, paired),
        System(f"rave_{kind}", "train_rave.py", (), paired),
    ]


SHIFT = ("--remove_first_n_tokens", str(SHIFTED_BY))
SYSTEMS = [
    *systems_of(paired=True),
    *systems_of(paired=False),
    System("rave_unpaired_shifted", "train_rave.py", SHIFT, False, needs_text=True),
]
NAMES = [system.name for system in SYSTEMS]
PUBLISHED = [*NAMES, "clip_lit_original"]  # CLIP-LIT's own, of its authors


def main(args: argparse.Namespace) -> int:
    """Train, enhance and score one system after another; returns the exit status."""
    # Find the sets, and what there is to do:
    data, output = Path(args.data), Path(args.output)
    chosen = choose_set(data)
    inputs, gt, test_inputs, test_gt = (data / chosen / folder for folder in PAIRED_SETS[chosen])
    photographs = len(list_photos(inputs))
    for folder in (gt, test_inputs, test_gt):
        list_photos(folder)
    systems, notes = choose_systems(args)
    read_train_options(args)
    settings = {name: getattr(args, name) for name in FIXED}
    settings |= {"data": str(data.resolve()), "set": chosen, "layout": LAYOUT}
    keep_settings(settings, output / FILE, RESULTS)

    # Train, enhance and score; of the published checkpoints those that are here:
    sources = {system.name: system for system in systems} | find_published()
    rows, failed = [], False
    for name, source in sources.items():
        try:
            weights, some, spent = source, False, {}
            if isinstance(source, System):
                well_lit = gt if source.paired else data / WELL_LIT
                weights, some = train_system(source, inputs, well_lit, photographs, output, args)
                spent = costs(output / "runs" / name)
            row, partial = score(name, weights, test_inputs, test_gt, output, args)
        except WorkError as error:
            warn(f"failed: {error}")
            notes.append(f"{name} failed: {error}.")
            failed = True
            continue
        failed |= some or partial
        rows.append(row | spent)
        write_tables(rows, notes, chosen, args.budget, output)
    if not rows:
        raise WorkError("nothing could be trained or scored; the reasons are above")
    write_tables(rows, notes, chosen, args.budget, output)
    tell(f"the table is in {output / 'table.md'}")
    return SOME_LEFT_OUT if failed else 0


def find_published() -> dict[str, Path]:
    """The published checkpoints that are in pretrained_models/, by the names of their rows."""
    files = {f"published_{name}": checkpoint.PRETRAINED / f"{name}.pth" for name in PUBLISHED}
    return {name: file for name, file in files.items() if file.is_file()}


def choose_set(data: Path) -> str:
    """Choose the set that trains: BAID, or LOL-v1 where that is missing.

    Raises:
        UserError: neither is there, or not whole.
    """
    for name, folders in PAIRED_SETS.items():
        if (data / name).is_dir():
            missing = [folder for folder in folders if not (data / name / folder).is_dir()]
            if missing:
                raise UserError(f"{data / name} has no folder {missing[0]}; --help shows all")
            return name
    raise UserError(
        f"{data} has neither {' nor '.join(PAIRED_SETS)}; --help shows the folders that it needs"
    )


def choose_systems(args: argparse.Namespace) -> tuple[list[System], list[str]]:
    """Choose the systems that can be trained.

    Returns:
        Them, and a sentence for each kind that is left out.

    Raises:
        UserError: none can.
    """
    systems, notes = [system for system in SYSTEMS if system.name in args.systems], []
    kept = systems
    if not (Path(args.data) / WELL_LIT).is_dir():
        kept = [system for system in kept if system.paired]
        notes += left_out(systems, kept, f"there is no {Path(args.data) / WELL_LIT}")
    with_images = kept
    if (args.guidance_encoder or "").startswith("timm/"):
        kept = [system for system in kept if not system.needs_text]
        notes += left_out(with_images, kept, f"{args.guidance_encoder} has no text side")
    for note in notes:
        tell(note)
    if not kept:
        raise UserError(f"no system can be trained: {' '.join(notes)}")
    return kept, notes


def left_out(before: Sequence[System], after: Sequence[System], why: str) -> list[str]:
    """Say in a sentence which systems are left out, if any are."""
    names = [system.name for system in before if system not in after]
    return [f"{', '.join(names)} left out, since {why}."] if names else []


def train_system(
    system: System,
    backlit: Path,
    well_lit: Path,
    photographs: int,
    output: Path,
    args: argparse.Namespace,
) -> tuple[Path, bool]:
    """Train a system, or go on with it.

    Returns:
        Its final weights, and whether photographs were left out.

    Raises:
        WorkError: it ended without them.
    """
    folder = output / "runs" / system.name
    weights = folder / "snapshots_model" / "final.pth"
    if weights.is_file():
        return weights, False
    tell(f"{system.name}: training")
    command = ["-b", str(backlit), "-r", str(well_lit), *system.method]
    command += ["--save_dir", str(output / "runs"), "--exp_name", system.name]
    command += ["--resume"] if folder.is_dir() else []
    command += lengths(system, photographs, args) + passed_on(args, TO_TRAINING)
    command += args.train_options or []
    status = call(system.script, command)
    if not weights.is_file():
        raise WorkError(f"{system.script} ended with status {status} and without final weights")
    return weights, status == SOME_LEFT_OUT


def read_train_options(args: argparse.Namespace) -> argparse.Namespace:
    """Read `args.train_options`, as far as both training scripts know them.

    Raises:
        UserError: they change what reproduce.py sets; argparse itself refuses unknown ones.
    """
    parser = options.ArgumentParser(prog="reproduce.py --train_options", usage="%(prog)s='...'")
    options.add_photo_arguments(parser)
    options.add_encoder_arguments(parser)
    options.add_enhancer_arguments(parser, num_epochs=0)
    options.add_run_arguments(parser)
    options.add_beyond_paper_arguments(parser)
    required = ["-b", HERE, "-r", HERE, "--exp_name", HERE]
    own = {"backlit_images_path", "well_lit_images_path", "exp_name", "save_dir", "resume"}
    own |= {name for name in TO_TRAINING if getattr(args, name) is not None}
    own |= set() if args.budget == 1 else {"max_iters", "thre_train", *ENHANCER_STAGES}
    parser.set_defaults(**dict.fromkeys(own, UNSET))
    found = parser.parse_args([*required, *(args.train_options or [])])
    if changed := sorted(name for name in own if getattr(found, name) not in (UNSET, HERE)):
        raise UserError(f"--train_options changes --{changed[0]}, which reproduce.py sets itself")
    return found


def lengths(system: System, photographs: int, args: argparse.Namespace) -> list[str]:
    """The options that scale a system's published iterations by the budget; none for 1.

    A warm-up from the published start keeps what it needs to replace one collapsed enhancer; that
    comes on top of the rest. No stage is extended for its loss, which would be high.
    """
    if args.budget == 1:
        return []
    batches = batches_per_epoch(photographs, args.train_batch_size or BATCH_SIZE)
    published = {"max_iters": system.epochs * batches, **system.stages}
    scaled = {name: max(1, round(args.budget * length)) for name, length in published.items()}
    missing = LEAST_WARM_UP - scaled["num_reconstruction_iters"]
    if missing > 0 and read_train_options(args).start_light_map is None:
        scaled["num_reconstruction_iters"] += missing
        scaled["max_iters"] += missing + RESTART_ITERS
    words = [word for name, length in scaled.items() for word in (f"--{name}", str(length))]
    return [*words, *(word for flag in system.thresholds for word in (f"--{flag}", "1e9"))]


def passed_on(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The options that are passed on to a script, of those that were given."""
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def score(
    name: str, weights: Path, inputs: Path, gt: Path, output: Path, args: argparse.Namespace
) -> tuple[dict[str, str], bool]:
    """Enhance the test photographs and score them, unless that is done.

    Returns:
        A row of the table, and whether photographs were left out.

    Raises:
        WorkError: they could not be enhanced, or not be scored.
    """
    scores = output / "scores" / f"{name}.json"
    if not is_whole(scores, args):
        tell(f"{name}: enhancing and scoring")
        enhanced = output / "enhanced" / name
        command = ["-i", str(inputs), "-o", str(enhanced), "-c", str(weights), "--skip_existing"]
        attempt("inference.py", [*command, *passed_on(args, ("device",))])
        scores.parent.mkdir(exist_ok=True)
        command = ["--gt_images_path", str(gt), "--enhanced_images_path", str(enhanced)]
        command += ["--json", str(scores), *passed_on(args, TO_METRICS)]
        attempt("compute_metrics.py", command)
    if not scores.is_file():
        raise WorkError(f"compute_metrics.py wrote no {scores}")
    row = row_of(name, json.loads(scores.read_text(encoding="utf-8")))
    return row, not is_whole(scores, args)


def is_whole(scores: Path, args: argparse.Namespace) -> bool:
    """Whether all test photographs were scored already, with the metrics' weights given now."""
    if not scores.is_file():
        return False
    found = json.loads(scores.read_text(encoding="utf-8"))
    given = [name for name in TO_METRICS[:2] if getattr(args, name) != found["options"][name]]
    return not (found["left_out"] or found["unmatched"]["gt"] or given)


def attempt(script: str, command: Sequence[str]) -> None:
    """Call a script; photographs that it leaves out are missing in what it writes.

    Raises:
        WorkError: it refused its work.
    """
    if (status := call(script, command)) not in (0, SOME_LEFT_OUT):
        raise WorkError(f"{script} ended with status {status}")


def costs(folder: Path) -> dict[str, str]:
    """The enhancer's iterations of a run, and the seconds that all took; none without last.pt."""
    if not (folder / "last.pt").is_file():
        return {}
    schedule = checkpoint.load(folder / "last.pt")["schedule"]
    return {"iterations": str(schedule["iteration"]), "seconds": f"{schedule['seconds']:.0f}"}


def words_of(text: str) -> list[str]:
    """Split options as a shell does."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} has {str(error).lower()}") from error


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = options.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="holds the sets")
    parser.add_argument(
        "--output", type=options.name, default="reproduced", metavar="FOLDER", help="where all goes"
    )
    parser.add_argument(
        "--systems", nargs="+", choices=NAMES, default=NAMES, metavar="NAME",
        help=f"of {', '.join(NAMES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--budget",
        type=options.number(float, above=0, most=1),
        default=1.0,
        metavar="X",
        help="a share of the published iterations, 0.01 for a hundredth",
    )
    group = parser.add_argument_group("passed on to the scripts")
    group.add_argument("--guidance_encoder", metavar="NAME", help="an open_clip model or timm/NAME")
    group.add_argument("--identity_encoder", metavar="NAME", help="an open_clip ResNet, timm/NAME")
    for flag, help_text in (
        ("clip_weights", "local weights of the guidance encoder"),
        ("identity_weights", "local weights of the identity encoder"),
        ("lpips_weights", "torchvision's weights of LPIPS' backbone"),
        ("fid_weights", "pytorch-fid's Inception weights"),
    ):
        group.add_argument(f"--{flag}", metavar="FILE", help=help_text)
    for flag in ("image_size", "train_batch_size"):
        group.add_argument(f"--{flag}", type=options.positive_int, metavar="N", help="as train.py")
    group.add_argument("--num_workers", type=options.count, metavar="N", help="loading processes")
    group.add_argument(
        "--train_options", type=words_of, metavar="'...'",
        help="more options of both scripts: --train_options='--ema_decay 0.9 --train_lr 2e-4'",
    )  # fmt: skip
    group.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
