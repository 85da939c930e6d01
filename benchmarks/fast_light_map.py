"""How fast and how near `inference.py --light_map_scale` is, against the exact result.

    python -m benchmarks.fast_light_map PHOTOS [PHOTOS ...] [--light_map_scale 0.5 0.25 0.125]

prints a Markdown table: a row for each folder and scale, with medians and the worst photograph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from tqdm import tqdm

from data.images import read_rgb
from data.listing import list_photos
from models import load_enhancer
from models.enhancer import UNetEnhancer
from models.fast_light_map import fast_light_map
from models.strength import divide
from models.tiling import enhance_photo
from utils.memory import keep_freed_memory
from utils.metrics import fidelity
from utils.script import exit_with


def compare(enhancer: UNetEnhancer, path: str, scales: list[float]) -> list[tuple[float, float]]:
    """Enhance a photograph exactly and at each scale.

    Returns:
        For each scale how many times as fast it was, and its PSNR in dB to the exact result.
    """
    pixels = read_rgb(path)
    start = time.perf_counter()
    exact = enhance_photo(enhancer, pixels)
    seconds = time.perf_counter() - start
    figures = []
    for scale in scales:
        start = time.perf_counter()
        fast = divide(pixels, fast_light_map(enhancer, pixels, scale))
        ratio = seconds / (time.perf_counter() - start)
        figures.append((ratio, fidelity(exact, fast, "standard", ["psnr"])["psnr"]))
    return figures


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    keep_freed_memory()
    enhancer = load_enhancer(args.unet_pretrain_dir, "cpu")
    print("| photographs | scale | times as fast | PSNR dB: median | least | at |")
    print("|---|---|---|---|---|---|")
    for folder in args.photos:
        photos = list_photos(folder)
        figures = [compare(enhancer, path, args.light_map_scale) for path in tqdm(photos)]
        for k, scale in enumerate(args.light_map_scale):
            ratios, psnrs = zip(*(of_photo[k] for of_photo in figures), strict=True)
            least = min(psnrs)
            print(
                f"| {folder} ({len(photos)}) | {scale} | {statistics.median(ratios):.1f} | "
                f"{statistics.median(psnrs):.1f} | {least:.1f} | "
                f"{Path(photos[psnrs.index(least)]).name} |",
                flush=True,
            )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", help="folders")
    parser.add_argument("--unet_pretrain_dir", help="as of inference.py")
    parser.add_argument("--light_map_scale", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
