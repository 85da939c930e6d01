"""Lay out folders for training: pairs, their crops, photographs with simulated backlighting.

    python -m data.prepare OUTPUT --pairs dark/ light/ --backlit dark/ --simulate well_lit/

OUTPUT gets `backlit` and `well_lit`; a pair has one name in both. Same arguments, same files.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.datasets import read_photos
from data.images import list_photos
from data.simulate import simulate_backlight
from utils import options
from utils.errors import UserError, exit_with
from utils.files import atomic_path

CROP_SHARE = (0.4, 0.8)  # of both sides


def generator_of(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but `key`."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def reduced(photo: np.ndarray, size: int) -> np.ndarray:
    """Reduce a photograph (H, W, 3) uint8 to a shorter side of at most `size`."""
    height, width = photo.shape[:2]
    scale = min(1.0, size / min(height, width))
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(photo).resize(target, Image.Resampling.LANCZOS))


def random_crop(photos: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """Cut the same random window out of photographs (H, W, 3) of one size."""
    height, width = photos[0].shape[:2]
    share = generator.uniform(*CROP_SHARE)
    h, w = max(1, int(height * share)), max(1, int(width * share))
    top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
    return [photo[top : top + h, left : left + w] for photo in photos]


def write(photo: np.ndarray, path: Path) -> None:
    """Save (H, W, 3) uint8 as PNG, whole or not at all.

    Raises:
        UserError: there is such a file already.
    """
    if path.exists():
        raise UserError(f"two photographs would both become {path}; rename one")
    with atomic_path(path) as temporary:
        Image.fromarray(photo).save(temporary, format="PNG")


def pairs_of(
    dark: str, light: str, excluded: set[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Read the photographs that two folders share by stem, the darker one first.

    Raises:
        UserError: a stem is missing on either side, or a pair's sizes differ.
    """
    partners = {path.stem: path for path in list_photos(light)}
    for path in list_photos(dark):
        if path.stem in excluded:
            continue
        if path.stem not in partners:
            raise UserError(f"{light} has no partner of {path}")
        read = [np.asarray(photo) for _, photo in read_photos([path, partners[path.stem]])]
        if len(read) < 2:
            continue  # read_photos has said which cannot be read
        backlit, well_lit = read
        if backlit.shape != well_lit.shape:
            raise UserError(f"{path} and its partner in {light} have different sizes")
        yield path.stem, backlit, well_lit


def included(folder: str, excluded: set[str]) -> Iterator[tuple[Path, np.ndarray]]:
    """Read a folder's photographs (H, W, 3) and those of its sub-folders, but the excluded."""
    paths = [path for path in list_photos(folder, recursive=True) if path.stem not in excluded]
    for path, photo in read_photos(paths):
        yield path, np.asarray(photo)


def main(args: argparse.Namespace) -> None:
    """Write the two folders."""
    output = Path(args.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder; choose a new one")
    if not (args.pairs or args.simulate or args.backlit):
        raise UserError("nothing to prepare; give --pairs, --simulate or --backlit")
    excluded = set(args.exclude)

    def write_pair(name: str, backlit: np.ndarray, well_lit: np.ndarray) -> None:
        write(reduced(backlit, args.size), output / "backlit" / f"{name}.png")
        write(reduced(well_lit, args.size), output / "well_lit" / f"{name}.png")

    for number, (dark, light) in enumerate(args.pairs):
        for stem, backlit, well_lit in pairs_of(dark, light, excluded):
            write_pair(f"pair{number}_{stem}", backlit, well_lit)
            for crop in range(args.crops):
                generator = generator_of("crop", args.seed, stem, crop)
                cut = random_crop([backlit, well_lit], generator)
                write_pair(f"pair{number}_{stem}_{crop}", *cut)
    for number, folder in enumerate(args.simulate):
        for path, photo in included(folder, excluded):
            photo = reduced(photo, args.size)
            for variant in range(args.variants):
                generator = generator_of("simulate", args.seed, path.stem, variant)
                name = f"simulated{number}_{path.stem}_{variant}"
                write_pair(name, simulate_backlight(photo, generator), photo)
    for number, folder in enumerate(args.backlit):
        for path, photo in included(folder, excluded):
            name = f"backlit{number}_{path.parent.name}_{path.stem}.png"
            write(reduced(photo, args.size), output / "backlit" / name)
    count = len(list((output / "backlit").glob("*.png")))
    if count == 0:
        raise UserError("every photograph was left out; check the folders and --exclude")
    print(f"{count} backlit photographs in {output}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="a new folder")
    parser.add_argument(
        "--pairs", nargs=2, action="append", default=[], metavar=("DARK", "LIGHT"), help="by name"
    )
    parser.add_argument(
        "--crops", type=options.count, default=0, help="random crops of each pair, besides"
    )
    parser.add_argument(
        "--simulate", action="append", default=[], metavar="FOLDER", help="well-lit photographs"
    )
    parser.add_argument(
        "--variants", type=options.positive_int, default=1, help="simulations of each photograph"
    )
    parser.add_argument(
        "--backlit", action="append", default=[], metavar="FOLDER", help="without a partner"
    )
    parser.add_argument("--exclude", nargs="*", default=[], metavar="STEM", help="left out")
    parser.add_argument(
        "--size", type=options.positive_int, default=320, help="shorter side, reduced to"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
