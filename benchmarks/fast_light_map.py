"""How fast and how near `inference.py --light_map_scale` is, against the exact result.

python -m benchmarks.fast_light_map PHOTOS [PHOTOS ...] --unet_pretrain_dir weights.pth
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from data.images import read_rgb
from data.listing import list_photos
from models import load_enhancer
from models.fast_light_map import fast_light_map
from models.strength import divide
from models.tiling import enhance_photo
from utils.memory import keep_freed_memory
from utils.metrics import fidelity
from utils.script import exit_with


def main(args: argparse.Namespace) -> None:
    """Print speed-up and PSNR of each photograph, and their medians."""
    keep_freed_memory()
    enhancer = load_enhancer(args.unet_pretrain_dir, "cpu")
    ratios, psnrs = [], []
    for path in [path for folder in args.photos for path in list_photos(folder)]:
        pixels = read_rgb(path)
        start = time.perf_counter()
        exact = enhance_photo(enhancer, pixels)
        middle = time.perf_counter()
        fast = divide(pixels, fast_light_map(enhancer, pixels, args.light_map_scale))
        ratios.append((middle - start) / (time.perf_counter() - middle))
        psnrs.append(fidelity(exact, fast, "standard", ["psnr"])["psnr"])
        print(f"{path.name:40} {ratios[-1]:5.1f} x {psnrs[-1]:6.2f} dB", flush=True)
    print(f"{len(psnrs)} photographs, scale {args.light_map_scale}")
    print(f"speed-up: median {statistics.median(ratios):.1f} x, least {np.min(ratios):.1f} x")
    print(f"PSNR: median {statistics.median(psnrs):.2f} dB, least {np.min(psnrs):.2f} dB")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", help="folders")
    parser.add_argument("--unet_pretrain_dir", help="as of inference.py")
    parser.add_argument("--light_map_scale", type=float, default=0.25)
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
