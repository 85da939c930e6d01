"""Compare enhancers on held-out photographs: the table of pretrained_models/README.md.

    python -m benchmarks.quality PHOTOS weights.pth other.pth
    python -m benchmarks.quality PHOTOS rave_default --strengths 0.7 1 auto

PHOTOS holds sice_backlit/{input,ref_frame,gt} and lol_eval15/{input,gt}. Standard PSNR and SSIM
on photographs resized to 256x256, beside the untouched input, auto gamma and CLAHE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from skimage.exposure import equalize_adapthist

from data.images import read_rgb
from data.listing import list_photos
from models import load_enhancer
from models.strength import Strength
from utils.metrics import fidelity
from utils.options import strength
from utils.script import exit_with

SIZE = 256
# Every fifth SICE scene, which the default model has not seen; its training excludes them by name.
HELD_OUT = ("1107", "116", "125", "1492", "1733", "190")

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


def square(path: Path) -> np.ndarray:
    """Read a photograph as (SIZE, SIZE, 3) uint8."""
    photo = Image.fromarray(read_rgb(path)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(photo)


def pairs_of(folder: Path, reference: str, stems: tuple[str, ...] | None = None) -> Pairs:
    """Read inputs and their references, of all scenes or of the named ones."""
    references = {path.stem: path for path in map(Path, list_photos(folder / reference))}
    return [
        (square(path), square(references[path.stem]))
        for path in map(Path, list_photos(folder / "input"))
        if stems is None or path.stem in stems
    ]


def mean_fidelity(enhance: Enhance, pairs: Pairs) -> str:
    """Mean standard PSNR and SSIM as a table's cell."""
    figures = [fidelity(reference, enhance(photo), "standard") for photo, reference in pairs]
    psnr, ssim = (np.mean([figure[name] for figure in figures]) for name in ("psnr", "ssim"))
    return f"{psnr:.2f} / {ssim:.3f}"


def main(args: argparse.Namespace) -> None:
    """Print a Markdown table, a row for each enhancer."""
    photos = Path(args.photos)
    sets = {
        f"SICE frame ({len(HELD_OUT)})": pairs_of(photos / "sice_backlit", "ref_frame", HELD_OUT),
        f"SICE fused ({len(HELD_OUT)})": pairs_of(photos / "sice_backlit", "gt", HELD_OUT),
        "LOL eval15": pairs_of(photos / "lol_eval15", "gt"),
    }
    enhancers: dict[str, Enhance] = {
        "untouched": lambda photo: photo,
        "auto gamma": auto_gamma,
        "CLAHE": clahe,
    }
    for path, power in product(args.weights, args.strengths):
        name = path if power == 1 else f"{path}, strength {power}"
        enhancers[name] = network(path, power)
    print(f"| PSNR dB / SSIM | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")
    for name, enhance in enhancers.items():
        cells = [mean_fidelity(enhance, pairs) for pairs in sets.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("weights", nargs="*")
    parser.add_argument(
        "--strengths", type=strength, nargs="+", default=[1.0], help="as inference.py takes them"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
