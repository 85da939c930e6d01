"""Items per second of the enhancer's data set for each cache mode, with and without augmentation.

python -m benchmarks.data [--photos 24] [--image_size 512] [--rounds 20]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from skimage import data as photographs

from data.datasets import EnhancerImages, stream_batches
from data.photo_store import CACHE_MODES, PhotoStore
from utils.options import positive_int
from utils.script import exit_with

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
SIZE = (2048, 1536)
BATCH_SIZE = 8


def main(args: argparse.Namespace) -> None:
    """Print a table of the cache modes."""
    torch.set_num_threads(1)  # as in a worker process
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name  # keeps the cache on disk out of the user's own
        paths = make_photos(Path(name), args.photos)
        datasets = {
            cache: EnhancerImages(PhotoStore(paths, args.image_size, cache))
            for cache in CACHE_MODES
        }
        seconds = seconds_per_item(datasets, args.rounds)
        for cache in CACHE_MODES:
            print(
                f"cache {cache:6} {1 / seconds[cache]:8.1f} items/s  "
                f"{seconds['none'] / seconds[cache]:6.1f} x"
            )


def make_photos(folder: Path, count: int) -> list[Path]:
    """Enlarge scikit-image's photographs to 2048 x 1536 JPEGs, each a little different."""
    paths = []
    for i in range(count):
        photo = Image.fromarray(getattr(photographs, NAMES[i % len(NAMES)])())
        crop = photo.crop((i, i, photo.width, photo.height))
        paths.append(folder / f"{i}.jpg")
        crop.resize(SIZE, Image.Resampling.BICUBIC).save(paths[-1], quality=92)
    return paths


def seconds_per_item(datasets: dict[str, EnhancerImages], rounds: int) -> dict[str, float]:
    """Load batches in turns, so that a busy machine slows all modes alike; take the median."""
    streams = {name: stream_batches(dataset, BATCH_SIZE) for name, dataset in datasets.items()}
    times: dict[str, list[float]] = {name: [] for name in datasets}
    for _ in range(1 + rounds):
        for name, stream in streams.items():
            start = time.perf_counter()
            ((_, (images,)),) = next(stream)
            times[name].append((time.perf_counter() - start) / len(images))
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=positive_int, default=24, help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--image_size", type=positive_int, default=512, help="side in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=20,
        help="batches timed of each mode (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
