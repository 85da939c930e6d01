"""What two processes of one thread gain over one, at enhancing, training and scoring.

    python -m benchmarks.scaling [--work inference training scoring] [--processes 2] [--repeats 3]

starts the scripts themselves, by torchrun and alone, on generated photographs and networks of full
size with random weights. Each is given little work and more work; the difference in time is that of
the work between them, without starting, loading and writing the end. All take turns, so that a
machine that is busy for a while slows all alike; figures are of the least seconds of each.

Beside the wall clock's seconds stand the processor's, which other programs disturb less: the ratio
that they give is the one of processes that never wait, each with a core of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.enhance import random_photo
from benchmarks.metrics import make_pairs, save_random_weights
from benchmarks.train_step import GUIDANCE, IDENTITY, random_model
from models.enhancer import new_enhancer
from utils.checkpoint import save_weights
from utils.steps import TORCHRUN

ROOT = Path(__file__).resolve().parents[1]
PHOTOS_OF_TRAINING = 8
FAILED = 400  # characters shown of what a script said that failed


@dataclass(frozen=True)
class Work:
    """What a script does.

    Attributes:
        unit: of the work.
        amounts: little and more of it, each a multiple of the processes.
        command: what follows `python` for each of the amounts; OUT stands for a new folder.
    """

    unit: str
    amounts: tuple[int, int]
    commands: tuple[list[str], list[str]]


def inference(folder: Path, args: argparse.Namespace) -> Work:
    """Enhance photographs of one size."""
    amounts = (args.processes, args.processes * (1 + args.photos))
    pixels = random_photo(args.megapixels)
    for amount in amounts:
        (folder / str(amount)).mkdir()
        for number in range(amount):
            Image.fromarray(pixels).save(folder / str(amount) / f"{number}.png")
    save_weights(new_enhancer(start_light_map=1.0), folder / "weights.pth")
    common = ["inference.py", "--unet_pretrain_dir", str(folder / "weights.pth"), "--device", "cpu"]
    commands = ([*common, "-i", str(folder / str(amount)), "-o", "OUT"] for amount in amounts)
    return Work("photo", amounts, tuple(commands))


def training(folder: Path, args: argparse.Namespace) -> Work:
    """Take steps of RAVE, after a warm-up of none."""
    rng = np.random.default_rng(0)
    for name, peak in (("backlit", 90), ("well_lit", 256)):
        (folder / name).mkdir()
        for number in range(PHOTOS_OF_TRAINING):
            pixels = rng.integers(0, peak, (args.image_size, args.image_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    for name in (GUIDANCE, IDENTITY):
        torch.save(random_model(name).state_dict(), folder / f"{name}.pt")
    amounts = (1, 1 + args.steps)
    common = [
        *("train_rave.py", "-b", str(folder / "backlit"), "-r", str(folder / "well_lit")),
        *("--guidance_encoder", GUIDANCE, "--clip_weights", str(folder / f"{GUIDANCE}.pt")),
        *("--identity_encoder", IDENTITY, "--identity_weights", str(folder / f"{IDENTITY}.pt")),
        *("--save_dir", "OUT", "--exp_name", "run", "--device", "cpu", "--num_workers", "0"),
        *("--image_size", str(args.image_size), "--train_batch_size", str(args.batch_size)),
        *("--start_light_map", "1", "--num_reconstruction_iters", "0", "--cache", "memory"),
    ]
    commands = ([*common, "--max_iters", str(amount)] for amount in amounts)
    return Work("step", amounts, tuple(commands))


def scoring(folder: Path, args: argparse.Namespace) -> Work:
    """Score pairs by all metrics in both protocols."""
    alex, inception = save_random_weights(folder)
    amounts = (args.processes, args.processes * (1 + args.pairs))
    commands = []
    for amount in amounts:
        here = folder / str(amount)
        for pair in make_pairs(here, amount):
            for kind in ("gt", "enhanced"):
                (here / kind).mkdir(exist_ok=True)
                os.replace(here / f"{pair.name}_{kind}.png", here / kind / f"{pair.name}.png")
        commands.append(
            [
                *("compute_metrics.py", "--gt_images_path", str(here / "gt"), "--device", "cpu"),
                *("--enhanced_images_path", str(here / "enhanced")),
                *("--lpips_weights", str(alex), "--fid_weights", str(inception)),
            ]
        )
    return Work("pair", amounts, tuple(commands))


ALL_WORK = {"inference": inference, "training": training, "scoring": scoring}


def seconds(command: Sequence[str], processes: int) -> tuple[float, float]:
    """Run a script to its end, each process with one thread; leave if it fails.

    Returns:
        Seconds by the wall clock, and those of the processor, on all cores together.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = (*TORCHRUN, str(processes)) if processes > 1 else ()
    with tempfile.TemporaryDirectory() as out:
        words = [word.replace("OUT", out) for word in command]
        begun, worked = time.perf_counter(), processor_seconds()
        done = subprocess.run(
            [sys.executable, *start, *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        taken = time.perf_counter() - begun, processor_seconds() - worked
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr[-FAILED:]}")
    return taken


def processor_seconds() -> float:
    """What the processes that this one has started, and that have ended, took of the processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(args: argparse.Namespace) -> None:
    """Measure in turns, and print the seconds of each kind of work and the ratios."""
    measured: dict[tuple[str, int, int], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        works = {}
        for kind in args.work:
            (Path(name) / kind).mkdir()
            works[kind] = ALL_WORK[kind](Path(name) / kind, args)
        for repeat in range(args.repeats):
            for kind, work in works.items():
                for amount, command in zip(work.amounts, work.commands, strict=True):
                    for processes in (1, args.processes):
                        what = f"{repeat + 1}/{args.repeats}: {kind}, {amount}, {processes}"
                        print(f"\r{what}    ", end="", file=sys.stderr, flush=True)
                        measured[kind, amount, processes].append(seconds(command, processes))
    print(
        f"\r{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, least of {args.repeats}\n\n"
        f"| work | alone | {args.processes} processes | times as fast | by the processor's time |\n"
        "|:--|--:|--:|--:|--:|"
    )
    for kind, work in works.items():
        few, more = work.amounts
        (alone, worked_alone), (shared, worked) = (
            (np.min(measured[kind, more, each], 0) - np.min(measured[kind, few, each], 0))
            / (more - few)
            for each in (1, args.processes)
        )
        cells = [f"{figure:.2f} s/{work.unit}" for figure in (alone, shared)]
        cells += [f"{alone / shared:.2f}", f"{args.processes * worked_alone / worked:.2f}"]
        print("|", " | ".join([kind, *cells]), "|")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", nargs="+", choices=list(ALL_WORK), default=list(ALL_WORK))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photos", type=int, default=4, help="measured, for each process")
    parser.add_argument("--megapixels", type=float, default=0.5, help="of a photograph")
    parser.add_argument("--steps", type=int, default=2, help="measured")
    parser.add_argument("--image_size", type=int, default=256, help="in training")
    parser.add_argument("--batch_size", type=int, default=8, help="in training")
    parser.add_argument("--pairs", type=int, default=6, help="of 600x400, for each process")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
