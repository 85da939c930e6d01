"""Put photographs into one picture, a row for a folder: the demo's backlit, enhanced, original.

    make demo
    python -m benchmarks.pictures docs/before_after.jpg
    python -m benchmarks.pictures results.jpg --photos . --rows photos=input enhanced=enhanced

The demo's photographs come with scikit-image and are free, so the picture may be published.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.images import read_rgb
from data.listing import list_photos
from utils.errors import UserError
from utils.files import atomic_path
from utils.script import exit_with

ROWS = [("backlit",) * 2, ("enhanced",) * 2, ("gt", "original")]  # folder and label
HEIGHT, GAP, LABEL, FONT = 220, 6, 30, 18  # pixels
BACKGROUND, INK = "white", "black"
QUALITY = 88  # of JPEG: about 200 KB


def main(args: argparse.Namespace) -> None:
    """Save the picture."""
    folders = [Path(args.photos) / folder for folder, _ in args.rows]
    names = [Path(path).stem for path in list_photos(folders[0])]
    rows = [read(folder, names) for folder in folders]
    widths = [round(photo.width * HEIGHT / photo.height) for photo in rows[0]]
    resized = {
        label: [
            photo.resize((width, HEIGHT), Image.Resampling.LANCZOS)
            for photo, width in zip(photos, widths, strict=True)
        ]
        for (_, label), photos in zip(args.rows, rows, strict=True)
    }
    with atomic_path(args.picture) as temporary:
        montage(resized).save(temporary, format="JPEG", quality=QUALITY, optimize=True)
    print(f"{args.picture}: {Path(args.picture).stat().st_size / 1000:.0f} KB")


def folder_and_label(text: str) -> tuple[str, str]:
    """Read FOLDER=LABEL."""
    folder, equals, label = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER=LABEL")
    return folder, label


def read(folder: Path, names: Sequence[str]) -> list[Image.Image]:
    """Read the photographs of these names, without suffix, from a folder.

    Raises:
        UserError: one is missing.
    """
    paths = {path.stem: path for path in map(Path, list_photos(folder))}
    if missing := [name for name in names if name not in paths]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; run make demo first, or name other rows"
        )
    return [Image.fromarray(read_rgb(paths[name])) for name in names]


def montage(rows: dict[str, Sequence[Image.Image]]) -> Image.Image:
    """Lay out rows of photographs of one height, each with its label to the left."""
    strips = []
    for label, photos in rows.items():
        name = Image.new("RGB", (HEIGHT, LABEL), BACKGROUND)
        font = ImageFont.load_default(FONT)
        ImageDraw.Draw(name).text((HEIGHT / 2, LABEL / 2), label, INK, font, anchor="mm")
        gap = np.full((HEIGHT, GAP, 3), 255, np.uint8)
        parts = [np.asarray(name.transpose(Image.Transpose.ROTATE_90))]
        for photo in photos:
            parts += [np.asarray(photo), gap]
        strip = np.concatenate(parts, axis=1)
        strips += [strip, np.full((GAP, strip.shape[1], 3), 255, np.uint8)]
    return Image.fromarray(np.concatenate(strips))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", help="the JPEG to write")
    parser.add_argument(
        "--photos",
        default="demo/output",
        metavar="FOLDER",
        help="where the rows' folders are (default: %(default)s, which make demo fills)",
    )
    parser.add_argument(
        "--rows",
        type=folder_and_label,
        nargs="+",
        default=ROWS,
        metavar="FOLDER=LABEL",
        help="folders in order, each with the photographs of the first one's names",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
