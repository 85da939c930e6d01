"""Time and memory of enhancing photographs on this machine's CPU.

    python benchmarks/enhance.py

times the network on the whole image at once (plain: NCHW, eager, fp32) and in tiles as inference.py
does, and measures what the machine's 3x3 convolutions reach. Each measurement has a process of its
own; the paths take turns, so that a machine that is busy for a while slows all of them. Rows give
medians.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/enhance.py`

from models.enhancer import UNetEnhancer, enhance
from models.tiling import enhance_photo
from utils.memory import keep_freed_memory

PEAK_SIDES = (128, 256, 512)  # of the 64-channel images whose convolution sets the peak
MEBIBYTE = 2**20
T = TypeVar("T")


def enhance_plainly(enhancer: UNetEnhancer, pixels: np.ndarray) -> np.ndarray:
    """Enhance (H, W, 3) uint8 pixels in one go."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().float() / 255
    with torch.no_grad():
        y = enhance(x, enhancer(x))
    return (y * 255).round().byte()[0].permute(1, 2, 0).numpy()


def flop_per_pixel() -> int:
    """What the network computes for a pixel: its 3x3 convolutions, each multiply-add as two."""
    return sum(2 * p.numel() for p in UNetEnhancer().parameters() if p.shape[2:] == (3, 3))


def computed_share(tile: int | None) -> float:
    """How many times that is computed of a megapixel, with the tiles' overlap and two passes."""
    pixels = random_photo(1)
    with FlopCounterMode(display=False) as counter:
        enhance_photo(UNetEnhancer("reflect").eval(), pixels, tile=tile)
    return counter.get_total_flops() / (flop_per_pixel() * pixels.size / 3)


def random_photo(megapixels: float) -> np.ndarray:
    """Dark noise (H, W, 3), uint8, of the shape 3:2."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    return np.random.default_rng(0).integers(0, 80, (height, height * 3 // 2, 3), dtype=np.uint8)


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def time_photo(path: str, megapixels: float, threads: int, tile: int | None) -> tuple[float, float]:
    """Enhance a photo once, warmed up, in this process.

    Returns:
        Seconds per megapixel, and the peak memory in MiB above that of a process that has only
        imported and built everything; the photo and its result are counted.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    enhancer = UNetEnhancer("reflect").eval()
    if path == "plain":
        run = enhance_plainly
    else:
        keep_freed_memory()
        enhancer = enhancer.to(memory_format=torch.channels_last)
        run = functools.partial(enhance_photo, tile=tile)
    baseline = peak_memory()
    run(enhancer, random_photo(min(megapixels, 1)))
    pixels = random_photo(megapixels)
    start = time.perf_counter()
    run(enhancer, pixels)
    seconds = time.perf_counter() - start
    return seconds / (pixels.size / 3e6), (peak_memory() - baseline) / MEBIBYTE


def convolution_peak(threads: int) -> float:
    """The most GFLOP/s that a channels-last 3x3 convolution of 64 channels reaches here."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    weight = torch.randn(64, 64, 3, 3)
    rates = []
    for side in PEAK_SIDES:
        x = torch.randn(1, 64, side, side).contiguous(memory_format=torch.channels_last)
        for _ in range(12):
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            rates.append(2 * weight.numel() * side**2 / (time.perf_counter() - start) / 1e9)
    return max(rates)


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of this file in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def main(args: argparse.Namespace) -> None:
    """Measure in turns and print medians."""
    peaks = []
    measured = {
        (path, size): []
        for size in args.megapixels
        for path in ("plain", "tiled")
        if path == "tiled" or size <= args.plain_up_to
    }
    for repeat in range(args.repeats):
        peaks.append(in_new_process(convolution_peak, args.threads))
        for (path, size), results in measured.items():
            print(f"\r{repeat + 1}/{args.repeats}: {path}, {size:g} MP   ", end="", file=sys.stderr)
            results.append(in_new_process(time_photo, path, size, args.threads, args.tile))

    peak = statistics.median(peaks)
    print(
        f"\r3x3 convolution peak: {peak:.0f} GFLOP/s on {args.threads} threads; medians of", end=""
    )
    print(
        f" {args.repeats}; tiled computes {computed_share(args.tile):.2f} times what is counted\n"
    )
    print("|    MP | path  |  s/MP | times plain | GFLOP/s | of peak | memory MiB |")
    print("|------:|-------|------:|------------:|--------:|--------:|-----------:|")
    for (path, size), results in measured.items():
        seconds, memory = (statistics.median(column) for column in zip(*results, strict=True))
        rate = flop_per_pixel() / seconds / 1e3
        ratio = "-"
        if ("plain", size) in measured:
            plain = statistics.median(result[0] for result in measured["plain", size])
            ratio = f"{plain / seconds:.2f}"
        print(
            f"| {size:5g} | {path:5} | {seconds:5.2f} | {ratio:>11} | {rate:7.0f} "
            f"| {rate / peak:7.0%} | {memory:10.0f} |"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.5, 1, 3, 24])
    parser.add_argument(
        "--plain_up_to",
        type=float,
        default=3,
        help="largest size in megapixels for the plain path, at 2 GB for each (default: 3)",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tile", type=int, help="side of the tiles in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
