"""Read files in a process of its own, which a decoder may crash, and tell what became of each.

    python -m tests.faults.reading FILE ...

For each file a line: its name, then "read", "unreadable", or what is wrong.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

from data.images import UnreadablePhoto, read_photo, upright_size

MEMORY = 2**30  # bytes beyond what the process needs to start
SECONDS = 60


def outcome(path: Path) -> str:
    start = time.monotonic()
    try:
        photo = read_photo(path)
    except UnreadablePhoto as error:
        result = "unreadable" if str(path) in str(error) else f"not named: {error}"
    except MemoryError:
        result = "unreadable"
    else:
        height, width, channels = photo.pixels.shape
        sound = (width, height) == upright_size(path) and channels in (1, 3)
        sound = sound and photo.pixels.dtype in (np.uint8, np.uint16)
        sound = sound and (photo.alpha is None or photo.alpha.shape == (height, width))
        result = "read" if sound else f"pixels of shape {photo.pixels.shape}"
    seconds = time.monotonic() - start
    return result if seconds < SECONDS else f"it took {seconds:.0f} s"


def main(paths: list[Path]) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for path in paths:
        print(path.name, end=" ", flush=True)
        try:
            print(outcome(path), flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
