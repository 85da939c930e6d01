import resource
from pathlib import Path

import numpy as np
from PIL import Image

from data.squares import CentreCrop, resized


def test_a_strips_crop_is_that_of_the_whole_strip() -> None:
    rng = np.random.default_rng(0)
    for short, long in ((1, 60), (1, 61), (2, 61), (3, 64), (30, 700), (31, 900), (300, 5000)):
        coarse = Image.fromarray(rng.integers(0, 256, (short, long // 4, 3), dtype=np.uint8))
        strip = coarse.resize((long, short), Image.Resampling.BICUBIC)
        scale = 64 / short
        whole = strip.resize((int(long * scale), 64), Image.Resampling.BICUBIC)
        left = round((whole.width - 64) / 2)
        expected = np.asarray(whole.crop((left, 0, left + 64, 64))).astype(int)
        wide = resized(np.asarray(strip), CentreCrop(64)).transpose(1, 2, 0)
        half_a_pixel = np.abs(np.diff(expected, axis=1)).max() / 2 + 2
        assert np.abs(wide - expected).max() <= half_a_pixel, (short, long)
        tall = resized(np.asarray(strip).transpose(1, 0, 2), CentreCrop(64)).transpose(2, 1, 0)
        assert np.array_equal(tall, wide)


def test_extreme_strips_are_resized_in_little_memory() -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limit[1]))
    try:
        for shape in ((1, 2_000_000, 3), (2_000_000, 1, 3), (20_000, 1, 3)):
            strip = np.full(shape, 77, np.uint8)
            assert (resized(strip, CentreCrop(224)) == 77).all()
            assert (resized(strip, 512) == 77).all()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
