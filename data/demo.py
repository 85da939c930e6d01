"""Lay out the demo's photographs: scikit-image's, with simulated backlighting and as they are.

    python -m data.demo demo/output

The folder gets `backlit` and `gt`, a photograph having one name in both. They come with
scikit-image and are free: NASA's and SpaceX's in the public domain, the other two CC0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data

from data.prepare import write
from data.simulate import simulate_backlight
from utils.errors import exit_with

# Photograph -> seed of its backlighting; those where the light comes from behind the subject.
BACKLIGHT_SEEDS = {"astronaut": 0, "chelsea": 0, "coffee": 0, "rocket": 0}


def main(args: argparse.Namespace) -> None:
    """Write the two folders, over what an earlier run left there."""
    output = Path(args.output)
    for name, seed in BACKLIGHT_SEEDS.items():
        photo = getattr(skimage.data, name)()  # (H, W, 3) uint8
        backlit = simulate_backlight(photo, np.random.default_rng(seed))
        write(backlit, output / "backlit" / f"{name}.png")
        write(photo, output / "gt" / f"{name}.png")
    print(f"{len(BACKLIGHT_SEEDS)} photographs in {output / 'backlit'} and {output / 'gt'}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="a folder, made if it is missing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
