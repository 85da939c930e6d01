"""Compare enhancers on held-out photographs: tables of README.md and pretrained_models/README.md.

    python -m benchmarks.quality PHOTOS weights.pth other.pth
    python -m benchmarks.quality PHOTOS rave_default --strengths 0.7 1 1.3
    python -m benchmarks.quality PHOTOS weights.pth other.pth --auto_exposure
    python -m benchmarks.quality PHOTOS weights.pth other.pth --native

PHOTOS holds sice_backlit/{input,ref_frame,gt} and lol_eval15/{input,gt}. Standard PSNR and SSIM
beside the untouched input, auto gamma and CLAHE: on photographs resized to 256x256, which compares
with nothing published; with --native on LOL-v1 eval15 as it is, beside what was published. In
brackets is the 95 % bootstrap interval of the mean PSNR.

Highlights and noise are of the same SICE scenes, result over input: the local contrast of the
brightest fifth, which falls where skies pale; and in flat dark areas the noise as a share of their
brightness, above 1 where it comes out stronger than by the light alone. The last rows are those of
the references themselves, one compared with the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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
from data.pairs import Pair, match_images, name_key
from evaluation.summary import estimate_mean
from models import load_enhancer
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


@dataclass(frozen=True)
class Scene:
    """A photograph and what its result is compared with, by name: (H, W, 3) uint8 each."""

    photo: np.ndarray
    references: dict[str, np.ndarray]


Results = Sequence[tuple[Scene, np.ndarray]]


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


def network(path: str, **how: object) -> Enhance:
    """An enhancer with the weights at `path`; `how` is what its `enhance` takes."""
    return partial(load_enhancer(path, "cpu").enhance, **how)


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


def read_square(path: str) -> np.ndarray:
    """Read a photograph and resize it: (SIZE, SIZE, 3) uint8."""
    photo = Image.fromarray(read_rgb(path))
    return np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def scenes_of(
    folder: Path,
    references: Mapping[str, str],
    names: Collection[str] = (),
    read: Callable[[str], np.ndarray] = read_square,
) -> list[Scene]:
    """Read the photographs in `folder`/input and their references.

    Args:
        folder: of a set.
        references: names and their folders in it.
        names: of the scenes wanted; none: all that have each reference.
        read: reads a file.

    Raises:
        UserError: a named scene is missing, or a reference of it.
    """
    found: dict[str, dict[str, Pair]] = {}
    for reference, place in references.items():
        roots = folder / place, folder / "input"
        pairs = match_images(*map(list_photos, roots), *roots).pairs
        found[reference] = {name_key(Path(pair.enhanced).stem): pair for pair in pairs}
    wanted = common = set.intersection(*map(set, found.values()))
    if names:
        wanted = set(map(name_key, names))
        if unknown := wanted - common:
            raise UserError(f"{folder} lacks scene {' '.join(sorted(unknown))} or its reference")
    first = next(iter(found.values()))
    return [
        Scene(
            photo=read(pair.enhanced),
            references={reference: read(pairs[key].gt) for reference, pairs in found.items()},
        )
        for key, pair in first.items()
        if key in wanted
    ]


def compare(scene: Scene, result: np.ndarray) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of a result, against each reference of its scene."""
    return {
        name: fidelity(reference, result, "standard")
        for name, reference in scene.references.items()
    }


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
        sets = [scenes_of(photos / "lol_eval15", {"LOL-v1 eval15": "gt"}, read=read_rgb)]
        more = ["published, dB"]
    else:
        count = len(set(args.held_out))
        references = {f"SICE {name} ({count})": at for name, at in REFERENCES.items()}
        sets = [
            scenes_of(photos / "sice_backlit", references, args.held_out),
            scenes_of(photos / "lol_eval15", {"LOL eval15": "gt"}),
        ]
        more = ["highlights", "noise"]
    enhancers: dict[str, Enhance] = {
        "untouched": lambda photo: photo,
        "auto gamma": auto_gamma,
        "CLAHE": clahe,
    }
    for path, power in product(args.weights, args.strengths):
        name = path if power == 1 else f"{path}, strength {power}"
        name += ", auto exposure" if args.auto_exposure else ""
        enhancers[name] = network(path, strength=power, auto_exposure=args.auto_exposure)
    columns = [name for scenes in sets for name in scenes[0].references] + more
    print(f"| PSNR dB [95 %] / SSIM | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, enhance in enhancers.items():
        results = [[(scene, enhance(scene.photo)) for scene in scenes] for scenes in sets]
        cells = [cell for of_set in results for cell in fidelity_cells(of_set)]
        cells += [PUBLISHED.get(Path(name).stem, "")] if args.native else artefact_cells(results[0])
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if not args.native:
        print_references(sets[0], others=len(sets) - 1)


def print_references(scenes: Sequence[Scene], others: int) -> None:
    """Print a row for each reference, compared with the other ones, and `others` empty cells."""
    names = list(scenes[0].references)
    for name in names:
        cells = []
        for other in names:
            pairs = [(scene.references[other], scene.references[name]) for scene in scenes]
            figures = [fidelity(*pair, "standard") for pair in pairs if other != name]
            cells.append(fidelity_cell(figures) if figures else "")
        results = [(scene, scene.references[name]) for scene in scenes]
        row = [*cells, *[""] * others, *artefact_cells(results)]
        print(f"| {name}: the reference | {' | '.join(row)} |")


def fidelity_cells(results: Results) -> list[str]:
    """A table's cells, one for each reference."""
    figures = [compare(scene, result) for scene, result in results]
    return [fidelity_cell([each[name] for each in figures]) for name in figures[0]]


def fidelity_cell(figures: Sequence[Mapping[str, float]]) -> str:
    """Mean PSNR with its 95 % bootstrap interval, and mean SSIM, as a table's cell."""
    psnr = estimate_mean([each["psnr"] for each in figures])
    interval = " [{:.1f}, {:.1f}]".format(*psnr.interval) if psnr.interval else ""
    return f"{psnr.value:.2f}{interval} / {mean_of(figures, 'ssim'):.3f}"


def artefact_cells(results: Results) -> list[str]:
    """The mean of each artefact as a table's cells."""
    figures = [artefacts(scene.photo, result) for scene, result in results]
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
        "--auto_exposure",
        action="store_true",
        help="expose the networks' results as inference.py does with it",
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
