"""Photographs decoded and resized once, then kept in memory or on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.images import UnreadablePhoto, read_rgb
from utils.errors import UserError
from utils.files import atomic_path

CACHE_MODES = ("memory", "disk", "none")


def decode(path: Path, image_size: int) -> np.ndarray:
    """Read a photograph and resize it to a square (Lanczos, aspect ratio not kept; method.md, 6).

    Returns:
        (3, image_size, image_size) uint8.

    Raises:
        UnreadablePhoto: the file is damaged or no photograph.
    """
    photo = Image.fromarray(read_rgb(path))
    photo = photo.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1))


class PhotoStore:
    """A list of square photographs; item i is (3, image_size, image_size) uint8.

    All files are decoded once when the store is made, in every mode: "memory" keeps the results
    (worker processes share them), "disk" keeps them in a file that later runs find again, and
    "none" only learns which files can be read and decodes again for each item. A file that cannot
    be read is named once and left out.

    Args:
        paths: the photographs.
        image_size: side in pixels.
        mode: "memory", "disk" or "none".
        folder: where "disk" keeps its files.

    Attributes:
        paths: the photographs that could be read, in the order given.

    Raises:
        UserError: not one file can be read, or "disk" cannot write to its folder.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        image_size: int,
        mode: str = "memory",
        folder: str | Path | None = None,
    ) -> None:
        if mode not in CACHE_MODES:
            raise UserError(f"unknown cache {mode!r}; choose one of {', '.join(CACHE_MODES)}")
        if mode == "disk" and folder is None:
            raise ValueError("a cache on disk needs a folder")
        if not paths:
            raise UserError("there are no photographs to load; check the folder")
        self.image_size = image_size
        self._pixels: Tensor | None = None  # (N, 3, image_size, image_size), in memory or mapped
        self._file: Path | None = None
        left_out: dict[int, str] = {}  # index in `paths`: why
        shape = (len(paths), 3, image_size, image_size)
        if mode == "memory":
            self._pixels = torch.zeros(shape, dtype=torch.uint8)
            for row, pixels in _decode_all(paths, image_size, left_out):
                self._pixels[row] = torch.from_numpy(pixels)
        elif mode == "disk":
            self._file = Path(folder) / f"{_fingerprint(paths, image_size)}.npy"
            left_out = _ensure_file(self._file, paths, shape)
        else:
            for _ in _decode_all(paths, image_size, left_out):
                pass
        for reason in left_out.values():
            tqdm.write(f"warning: {reason}; it is left out", file=sys.stderr)
        if len(left_out) == len(paths):
            raise UserError(
                f"none of the {len(paths)} files in {Path(paths[0]).parent} can be read as a "
                "photograph; check the folder"
            )
        self._rows = [row for row in range(len(paths)) if row not in left_out]
        self.paths = [Path(paths[row]) for row in self._rows]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self._file is not None and self._pixels is None:
            self._pixels = torch.from_numpy(np.load(self._file, mmap_mode="c"))
        if self._pixels is not None:
            return self._pixels[self._rows[index]]
        return torch.from_numpy(decode(self.paths[index], self.image_size))

    def __getstate__(self) -> dict[str, object]:
        # A worker process that is sent this maps the file itself; pixels in memory are shared.
        return self.__dict__ | ({"_pixels": None} if self._file is not None else {})


def _decode_all(
    paths: Sequence[Path], image_size: int, left_out: dict[int, str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode on all cores, in order; files that cannot be read go to `left_out` instead."""

    def attempt(path: Path) -> np.ndarray | UnreadablePhoto:
        try:
            return decode(Path(path), image_size)
        except UnreadablePhoto as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(attempt, paths)
        progress = tqdm(
            results, total=len(paths), desc="decoding", unit="photo", leave=False, disable=None
        )
        for row, result in enumerate(progress):
            if isinstance(result, UnreadablePhoto):
                left_out[row] = str(result)
            else:
                yield row, result


def _fingerprint(paths: Sequence[Path], image_size: int) -> str:
    """Name a disk cache after its photographs (place, size, time of change) and its settings."""
    described: list[object] = ["lanczos, planar", image_size]
    for path in map(Path, paths):
        status = path.stat()
        described.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(described).encode()).hexdigest()[:32]


def _ensure_file(
    file: Path, paths: Sequence[Path], shape: tuple[int, int, int, int]
) -> dict[int, str]:
    """Write the .npy file unless it is there; return which of its rows were left out and why."""
    notes = file.with_suffix(".json")
    if not file.is_file():
        left_out: dict[int, str] = {}
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        blank = bytes(shape[1] * shape[2] * shape[3])
        try:
            with atomic_path(file) as temporary:
                with temporary.open("wb") as stream:
                    np.lib.format.write_array_header_1_0(stream, header)
                    written = 0
                    for row, pixels in _decode_all(paths, shape[-1], left_out):
                        stream.write(blank * (row - written))
                        stream.write(pixels.tobytes())
                        written = row + 1
                    stream.write(blank * (shape[0] - written))
                with atomic_path(notes) as sidecar:  # first, so that the .npy never stands alone
                    sidecar.write_text(json.dumps(left_out))
        except OSError as error:
            raise UserError(
                f"cannot write the cache {file} ({error.strerror}); choose --cache memory or "
                "make room"
            ) from error
    return {int(row): reason for row, reason in json.loads(notes.read_text()).items()}
