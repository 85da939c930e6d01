"""Lay out folders for training: pairs, brackets, crops, photographs with simulated lack of light.

    python -m data.prepare OUTPUT --pairs dark/ light/ --backlit dark/ --simulate well_lit/
    python -m data.prepare OUTPUT --fuse brackets/

OUTPUT gets the folders `backlit` and `well_lit`, in which the two photographs of a pair have the
same name. The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.fusion import fuse
from data.images import UnreadablePhoto, read_rgb
from data.listing import THUMBNAILS, list_photos
from data.pairs import Pair, abridged, match_images, name_key
from data.simulate import DARKEST, DIM, NIGHT, simulate
from utils import options
from utils.errors import SOME_LEFT_OUT, UserError, WorkError, tell, warn
from utils.files import atomic_path
from utils.script import exit_with

CROP_SHARE = (0.4, 0.8)  # of both sides


def main(args: argparse.Namespace) -> int:
    """Write the two folders; returns the exit status."""
    output = Path(args.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder; choose a new one")
    if not (args.pairs or args.fuse or args.simulate or args.backlit):
        raise UserError("nothing to prepare; give --pairs, --fuse, --simulate or --backlit")
    left_out: list[Path] = []
    excluded = set(map(name_key, args.exclude))

    # Name all that will be written, before anything is:
    pairs = [
        (f"pair{number}_{Path(pair.enhanced).stem}", pair)
        for number, folders in enumerate(args.pairs)
        for pair in match_folders(*folders, excluded)
    ]
    brackets = [
        (f"{scene.parent.name}_{scene.name}", scene, frames)
        for folder in args.fuse
        for scene, frames in list_brackets(folder, excluded)
    ]
    simulated = [
        (f"simulated{number}_{path.stem}", path)
        for number, folder in enumerate(args.simulate)
        for path in list_below(folder, excluded)
    ]
    backlit = [
        (f"backlit{number}_{path.parent.name}_{path.stem}", path)
        for number, folder in enumerate(args.backlit)
        for path in list_below(folder, excluded)
    ]
    warn_of_unknown(args)
    crops = ["", *(f"_{crop}" for crop in range(args.crops))]
    with_crops = pairs + [
        (f"{name}_{path.stem}", path) for name, _, frames in brackets for path in frames
    ]
    check_names(
        [(f"{name}{crop}", source) for name, source in with_crops for crop in crops]
        + [(f"{name}_{i}", path) for name, path in simulated for i in range(args.variants)]
        + backlit
    )

    # Pairs and their crops:
    for name, names in pairs:
        if photos := read_pair(names, left_out):
            write_with_crops(output, name, photos, args)

    # Each frame of a bracket that is darker than their fusion, and the fusion:
    for name, scene, frames in brackets:
        for stem, *photos in fused_pairs(scene, frames, left_out):
            write_with_crops(output, f"{name}_{stem}", photos, args)

    # Well-lit photographs and their simulated backlit partners:
    for name, path in simulated:
        photo = read(path, left_out)
        if photo is None:
            continue
        photo = reduced(photo, args.size)
        for variant in range(args.variants):
            generator = generator_of("simulate", args.seed, path.stem, variant)
            photos = [simulate(photo, generator, args.night, args.darkest), photo]
            write_pair(output, f"{name}_{variant}", photos, args.size)

    # Backlit photographs without a partner:
    for name, path in backlit:
        photo = read(path, left_out)
        if photo is not None:
            write(reduced(photo, args.size), output / "backlit" / f"{name}.png")

    count, partners = (len(list((output / kind).glob("*.png"))) for kind in ("backlit", "well_lit"))
    if count == 0:
        raise WorkError("every photograph was left out; check the folders and --exclude")
    tell(f"{count} backlit photographs in {output}, {partners} of them with a well-lit partner")
    return SOME_LEFT_OUT if left_out else 0


def match_folders(dark: str, light: str, excluded: set[str]) -> list[Pair]:
    """Pair the photographs of two folders as `match_images` does, before anything is written.

    Args:
        dark: the folder of the backlit ones.
        light: the folder of the well-lit ones; those without a partner are counted, and not used.
        excluded: `name_key` of photographs to leave out.

    Raises:
        UserError: a dark photograph has no partner or several.
    """
    dark_photos, light_photos = unexcluded(list_photos(dark), excluded), list_photos(light)
    if not dark_photos:
        return []
    matching = match_images(light_photos, dark_photos, Path(light), Path(dark))
    if alone := matching.leftovers["enhanced"]:
        raise UserError(f"{light} has no partner of {abridged(alone)}; --exclude leaves it out")
    for kind, why in (("gt", "without a partner"), ("set_aside", "set aside: only (1) counts")):
        if files := unexcluded(matching.leftovers[kind], excluded):
            warn(f"{len(files)} not used, since {why}: {abridged(files)}")
    return matching.pairs


def warn_of_unknown(args: argparse.Namespace) -> None:
    """Warn of `--exclude` names that neither a photograph nor a bracket has."""
    below = [*args.simulate, *args.backlit]
    paths = [path for folder in below for path in list_photos(folder, recursive=True)]
    paths += [path for dark, _ in args.pairs for path in list_photos(dark)]
    known = {name_key(Path(path).stem) for path in paths}
    known |= {name_key(scene.name) for folder in args.fuse for scene in Path(folder).iterdir()}
    for name in sorted(set(args.exclude)):
        if name_key(name) not in known:
            warn(f"warning: --exclude {name} is the name of no photograph")


def unexcluded(paths: Sequence[str], excluded: set[str]) -> list[str]:
    """Leave out the photographs whose names are excluded."""
    return [path for path in paths if name_key(Path(path).stem) not in excluded]


def check_names(names: Iterable[tuple[str, Path | Pair]]) -> None:
    """Check that no two photographs would be written under one name, case and Unicode form aside.

    Args:
        names: each that may be written (not all are: some frames are the brighter ones, some files
            cannot be read), and of which photograph or pair.

    Raises:
        UserError: two would.
    """
    sources: dict[str, Path | str] = {}
    for name, source in names:
        key, path = name_key(name), source.enhanced if isinstance(source, Pair) else source
        if key in sources:
            raise UserError(f"{sources[key]} and {path} would both become {name}.png; rename one")
        sources[key] = path


def read_pair(pair: Pair, left_out: list[Path]) -> list[np.ndarray] | None:
    """Read a pair of photographs.

    Returns:
        The dark one and the light one, (H, W, 3) uint8; None if one cannot be read, which is then
        named and added to `left_out`.

    Raises:
        WorkError: their sizes differ.
    """
    photos = [read(Path(path), left_out) for path in (pair.enhanced, pair.gt)]
    if any(photo is None for photo in photos):
        return None
    if photos[0].shape != photos[1].shape:
        raise WorkError(f"{pair.enhanced} and {pair.gt} have different sizes")
    return photos


def list_brackets(folder: str, excluded: set[str]) -> list[tuple[Path, list[Path]]]:
    """List the sub-folders of a folder, in each of which lie the frames of one bracket.

    Returns:
        Each with its photographs, but for those whose names are excluded.

    Raises:
        UserError: there is none, or one that has no photographs.
    """
    if not os.path.isdir(folder):
        raise UserError(f"no folder at {folder}; check the path")
    scenes = [path for path in sorted(Path(folder).iterdir()) if path.is_dir()]
    scenes = [path for path in scenes if path.name[0] != "." and path.name not in THUMBNAILS]
    if not scenes:
        raise UserError(f"{folder} has no sub-folders; --fuse takes one for each bracket")
    return [
        (scene, [Path(frame) for frame in list_photos(scene)])
        for scene in scenes
        if name_key(scene.name) not in excluded
    ]


def fused_pairs(
    scene: Path, paths: Sequence[Path], left_out: list[Path]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Read a bracket, and pair each frame that is darker than the fusion of all with it.

    Yields:
        The frame's stem, the frame and the fusion, (H, W, 3) uint8. A bracket of a single frame,
        or of which one cannot be read, is left out and added to `left_out`.

    Raises:
        WorkError: the frames' sizes differ.
    """
    unread: list[Path] = []
    frames = {path.stem: read(path, unread) for path in paths}
    if unread or len(frames) < 2:
        left_out.append(scene)
        why = "a frame cannot be read" if unread else "it has one frame"
        warn(f"warning: {scene} is left out, since {why}")
        return
    if len({frame.shape for frame in frames.values()}) > 1:
        raise WorkError(f"the frames in {scene} have different sizes")
    fusion = fuse(list(frames.values()))
    for stem, frame in frames.items():
        if frame.mean() < fusion.mean():
            yield stem, frame, fusion


def list_below(folder: str, excluded: set[str]) -> list[Path]:
    """List the photographs of a folder and its sub-folders, except those excluded."""
    return [Path(path) for path in unexcluded(list_photos(folder, recursive=True), excluded)]


def read(path: Path, left_out: list[Path]) -> np.ndarray | None:
    """Read a photograph, (H, W, 3) uint8; None if it cannot be read, which is named and noted."""
    try:
        return np.asarray(read_rgb(path))
    except UnreadablePhoto as error:
        left_out.append(path)
        warn(f"warning: {error}; it is left out")
        return None


def generator_of(*key: object) -> np.random.Generator:
    """Make a generator that depends on `key` alone."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def random_crop(photos: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """Cut the same random window out of photographs (H, W, 3) of one size."""
    height, width = photos[0].shape[:2]
    share = generator.uniform(*CROP_SHARE)
    h, w = max(1, int(height * share)), max(1, int(width * share))
    top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
    return [photo[top : top + h, left : left + w] for photo in photos]


def reduced(photo: np.ndarray, size: int) -> np.ndarray:
    """Reduce a photograph (H, W, 3) uint8 to a shorter side of at most `size` pixels."""
    height, width = photo.shape[:2]
    scale = min(1.0, size / min(height, width))
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(photo).resize(target, Image.Resampling.LANCZOS))


def write_with_crops(
    output: Path, name: str, pair: Sequence[np.ndarray], args: argparse.Namespace
) -> None:
    """Save a pair, and `args.crops` random crops of it."""
    write_pair(output, name, pair, args.size)
    for crop in range(args.crops):
        stem = name.partition("_")[2]
        cut = random_crop(pair, generator_of("crop", args.seed, stem, crop))
        write_pair(output, f"{name}_{crop}", cut, args.size)


def write_pair(output: Path, name: str, pair: Sequence[np.ndarray], size: int) -> None:
    """Save a backlit photograph and its well-lit partner, reduced, under one name."""
    for folder, photo in zip(("backlit", "well_lit"), pair, strict=True):
        write(reduced(photo, size), output / folder / f"{name}.png")


def write(photo: np.ndarray, path: Path) -> None:
    """Save (H, W, 3) uint8 as PNG, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(photo).save(temporary, format="PNG")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = options.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="a new folder")
    parser.add_argument(
        "--pairs",
        nargs=2,
        action="append",
        default=[],
        metavar=("DARK", "LIGHT"),
        help="two folders whose photographs belong together by name; may be given several times",
    )
    parser.add_argument(
        "--crops",
        type=options.count,
        default=0,
        help="random crops that are added for each pair (default: %(default)s)",
    )
    parser.add_argument(
        "--fuse",
        action="append",
        default=[],
        metavar="FOLDER",
        help="sub-folders with the frames of a bracket each; every frame that is darker than the "
        "fusion of all becomes its backlit partner; may be given several times",
    )
    parser.add_argument(
        "--simulate",
        action="append",
        default=[],
        metavar="FOLDER",
        help="well-lit photographs to darken in various ways; may be given several times",
    )
    parser.add_argument(
        "--variants",
        type=options.positive_int,
        default=1,
        help="simulations of each photograph (default: %(default)s)",
    )
    parser.add_argument(
        "--night",
        type=options.number(float, least=0, most=1),
        default=NIGHT,
        metavar="SHARE",
        help="how many of them are darkened as a whole, as by night (default: %(default)s)",
    )
    parser.add_argument(
        "--darkest",
        type=options.number(float, least=0.0001, most=DIM),
        default=DARKEST,
        metavar="GAIN",
        help="the least of those photographs' linear light that is left (default: %(default)s)",
    )
    parser.add_argument(
        "--backlit",
        action="append",
        default=[],
        metavar="FOLDER",
        help="backlit photographs without a partner; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        nargs="*",
        default=[],
        metavar="STEM",
        help="names, without suffix, of photographs to leave out",
    )
    parser.add_argument(
        "--size",
        type=options.positive_int,
        default=320,
        metavar="PIXELS",
        help="reduce photographs to a shorter side of this (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the crops and the simulations (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
