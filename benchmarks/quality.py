"""Compare enhancers on held-out photographs: tables of README.md and pretrained_models/README.md.

    python -m benchmarks.quality PHOTOS weights.pth other.pth
    python -m benchmarks.quality PHOTOS rave_default --strengths 0.7 1 auto
    python -m benchmarks.quality PHOTOS weights.pth other.pth --native

PHOTOS holds sice_backlit/{input,ref_frame,gt} and lol_eval15/{input,gt}. Standard PSNR and SSIM
beside the untouched input, auto gamma and CLAHE: on photographs resized to 256x256, which compares
with nothing published; with --native on LOL-v1 eval15 as it is, beside what was published. In
brackets is the 95 % bootstrap interval of the mean PSNR.

Highlights and noise are of the same SICE scenes, result over input: the local contrast of the
brightest fifth, which falls where skies pale; and in flat dark areas the noise as a share of their
brightness, above 1 where it comes out stronger than by the light alone. The references have both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage.color import lab2rgb, rgb2lab
from skimage.exposure import equalize_adapthist

from data.images import read_rgb
from data.listing import list_photos
from data.pairs import match_images
from evaluation.summary import estimate_mean
from models import load_enhancer
from models.strength import Strength
from pretrained_models.train_default import HELD_OUT, REFERENCES
from utils.errors import UserError
from utils.metrics import GREY, fidelity
from utils.options import strength
from utils.script import exit_with

SIZE = 256
WINDOW = 7  # pixels, of local contrast
TINY = 1e-3  # of 255, so that black areas have a noise
PUBLISHED = {"clip_lit_original": "12.394"}  # dB on LOL-v1 eval15; docs/published.md has the source

Enhance = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 to the same
Pairs = list[tuple[np.ndarray, np.ndarray]]


def auto_gamma(photo: np.ndarray) -> np.ndarray:
    """Raise a photograph to the power that would bring its mean to one half."""
    x = photo / 255
    return np.rint(255 * x ** (np.log(0.5) / np.log(x.mean()))).astype(np.uint8)


def clahe(photo: np.ndarray) -> np.ndarray:
    """Equalise the lightness in 8x8 regions with limited contrast (scikit-image)."""
    lab = rgb2lab(photo)
    tiles = [side // 8 for side in photo.shape[:2]]
    lab[..., 0] = 100 * equalize_adapthist(lab[..., 0] / 100, tiles, clip_limit=0.01)
    return np.rint(255 * lab2rgb(lab).clip(0, 1)).astype(np.uint8)


def network(path: str, strength: Strength) -> Enhance:
    """An enhancer with the weights at `path`, at a strength."""
    return partial(load_enhancer(path, "cpu").enhance, strength=strength)


def local_deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviations of (H, W) in windows of 7x7."""
    mean, of_squares = (uniform_filter(each, WINDOW) for each in (values, values**2))
    return np.sqrt(np.maximum(of_squares - mean**2, 0))


def highlight_contrast(photo: np.ndarray, result: np.ndarray) -> float:
    """Mean local deviation of luma over the input's brightest fifth, result over input."""
    before, after = photo @ GREY, result @ GREY
    bright = before >= np.quantile(before, 0.8)
    then, now = (local_deviation(values)[bright].mean() + TINY for values in (before, after))
    return float(now / then)


def dark_noise(photo: np.ndarray, result: np.ndarray) -> float:
    """Mean local deviation over mean, in the flatter half of the darker half, result over input."""
    before, after = photo @ GREY, result @ GREY
    dark, deviation = before <= np.median(before), local_deviation(before)
    flat = dark & (deviation <= np.median(deviation[dark]))

    def share(values: np.ndarray) -> float:
        return (local_deviation(values)[flat].mean() + TINY) / (values[flat].mean() + TINY)

    return float(share(after) / share(before))


def square(photo: np.ndarray) -> np.ndarray:
    """Resize a photograph (H, W, 3) uint8 to (SIZE, SIZE, 3)."""
    return np.asarray(Image.fromarray(photo).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def pairs_of(folder: Path, reference: str, names: Collection[str] | None = None) -> Pairs:
    """Read inputs and their references, of all scenes or of the named ones.

    Raises:
        UserError: there is no scene of a name.
    """
    roots = folder / reference, folder / "input"
    pairs = match_images(*map(list_photos, roots), *roots).pairs
    if unknown := set(names or ()) - {pair.name for pair in pairs}:
        raise UserError(f"{folder} has no scene {' '.join(sorted(unknown))}")
    return [
        (read_rgb(pair.enhanced), read_rgb(pair.gt))
        for pair in pairs
        if names is None or pair.name in names
    ]


def squares_of(folder: Path, reference: str, names: Collection[str] | None = None) -> Pairs:
    """Read them resized."""
    pairs = pairs_of(folder, reference, names)
    return [(square(photo), square(wanted)) for photo, wanted in pairs]


def artefacts(photo: np.ndarray, result: np.ndarray) -> dict[str, float]:
    """What can go wrong beside the light."""
    return {
        "highlights": highlight_contrast(photo, result),
        "noise": dark_noise(photo, result),
    }


def mean_of(figures: Sequence[Mapping[str, float]], name: str) -> float:
    """The mean of one figure."""
    return float(np.mean([each[name] for each in figures]))


def main(args: argparse.Namespace) -> None:
    """Print a Markdown table, a row for each enhancer."""
    photos = Path(args.photos)
    if args.native:
        sets = {"LOL-v1 eval15": pairs_of(photos / "lol_eval15", "gt")}
        more = ["published, dB"]
    else:
        scenes, count = photos / "sice_backlit", len(args.held_out)
        sets = {
            f"SICE {name} ({count})": squares_of(scenes, folder, args.held_out)
            for name, folder in REFERENCES.items()
        }
        sets["LOL eval15"] = squares_of(photos / "lol_eval15", "gt")
        more = ["highlights", "noise"]
    enhancers: dict[str, Enhance] = {
        "untouched": lambda photo: photo,
        "auto gamma": auto_gamma,
        "CLAHE": clahe,
    }
    for path, power in product(args.weights, args.strengths):
        name = path if power == 1 else f"{path}, strength {power}"
        enhancers[name] = network(path, power)
    columns = [*sets, *more]
    print(f"| PSNR dB [95 %] / SSIM | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, enhance in enhancers.items():
        results = {
            column: [(photo, reference, enhance(photo)) for photo, reference in pairs]
            for column, pairs in sets.items()
        }
        cells = [
            fidelity_cell([fidelity(wanted, result, "standard") for _, wanted, result in of_set])
            for of_set in results.values()
        ]
        if args.native:
            cells.append(PUBLISHED.get(Path(name).stem, ""))
        else:
            cells += artefact_cells([(photo, found) for photo, _, found in results[columns[0]]])
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if not args.native:
        for column in columns[: len(REFERENCES)]:
            print(f"| {column}: the reference | | | | {' | '.join(artefact_cells(sets[column]))} |")


def fidelity_cell(figures: Sequence[Mapping[str, float]]) -> str:
    """Mean PSNR with its 95 % bootstrap interval, and mean SSIM, as a table's cell."""
    psnr = estimate_mean([each["psnr"] for each in figures])
    interval = " [{:.1f}, {:.1f}]".format(*psnr.interval) if psnr.interval else ""
    return f"{psnr.value:.2f}{interval} / {mean_of(figures, 'ssim'):.3f}"


def artefact_cells(pairs: Pairs) -> list[str]:
    """The mean of each artefact as a table's cells, of photographs and results."""
    figures = [artefacts(photo, result) for photo, result in pairs]
    return [f"{mean_of(figures, name):.2f}" for name in figures[0]]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("weights", nargs="*", help="files, or names in pretrained_models/")
    parser.add_argument(
        "--strengths", type=strength, nargs="+", default=[1.0], help="as inference.py takes them"
    )
    parser.add_argument(
        "--native", action="store_true", help="LOL-v1 eval15 alone, at its native size"
    )
    parser.add_argument(
        "--held_out", nargs="+", default=HELD_OUT, metavar="SCENE", help="which SICE scenes"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
