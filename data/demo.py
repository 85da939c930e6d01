"""Lay out the demo's photographs: scikit-image's, unchanged and with simulated backlighting.

    python -m data.demo demo/output

The folder gets `backlit` and `gt`, in which a photograph has the same name. All of them come with
scikit-image and are free: astronaut is NASA's and in the public domain; the others are CC0, by Lav
Varshney (camera), Stefan van der Walt (chelsea) and Rachel Michetti (coffee).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data

from data.prepare import write
from data.simulate import simulate_backlight
from utils.errors import tell
from utils.options import ArgumentParser
from utils.script import exit_with

# Photograph -> seed of its backlighting, chosen so that the light comes from behind the subject.
BACKLIGHT_SEEDS = {"astronaut": 4928, "camera": 2886, "chelsea": 5634, "coffee": 2286}


def main(args: argparse.Namespace) -> None:
    """Write the two folders, replacing the files of an earlier run."""
    output = Path(args.output)
    for name, seed in BACKLIGHT_SEEDS.items():
        photo = photograph(name)
        backlit = simulate_backlight(photo, np.random.default_rng(seed))
        for folder, pixels in (("backlit", backlit), ("gt", photo)):
            path = output / folder / f"{name}.png"
            path.unlink(missing_ok=True)
            write(pixels, path)
    tell(f"{len(BACKLIGHT_SEEDS)} photographs in {output / 'backlit'} and {output / 'gt'}")


def photograph(name: str) -> np.ndarray:
    """Load one of scikit-image's photographs, (H, W, 3) uint8; grey is repeated."""
    photo = getattr(skimage.data, name)()
    return photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("output", help="a folder, created if it is missing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
