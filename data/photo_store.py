"""Photographs decoded and resized once, then kept in memory or in a cache on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.images import UnreadablePhoto, read_rgb
from data.squares import CentreCrop, resized
from utils import distributed
from utils.errors import UserError, WorkError, shows_progress, tell, warn
from utils.files import atomic_path, cache_folder, locked
from utils.memory import free_memory

CACHE_MODES = ("memory", "disk", "none")
SHARE_OF_FREE = 0.25  # of the free memory, which photographs may fill
SETTINGS = "Lanczos, channels first"  # of `resized`; part of a cache's name


def decode(path: str | Path, size: int | CentreCrop) -> np.ndarray:
    """Read a photograph and resize it as `resized` does.

    Raises:
        UnreadablePhoto: the file cannot be read as a photograph.
    """
    return resized(read_rgb(path), size)


def choose_cache(
    mode: str, folders: Sequence[tuple[Sequence[str], Sequence[int | CentreCrop]]]
) -> str:
    """Choose where photographs are kept: in memory while they fit into a quarter of what is free.

    Args:
        mode: what the user chose; anything but "auto" stands.
        folders: the photographs of each, and the sizes that they are kept in.

    Returns:
        One of `CACHE_MODES`, the same in all processes of a run.
    """
    if mode != "auto":
        return mode
    sizes = (math.prod(_shape(paths, size)) for paths, several in folders for size in several)
    needed = sum(sizes) * distributed.local_world_size()  # each process has its own
    fits = all(distributed.gather(needed <= SHARE_OF_FREE * free_memory()))
    where = "in memory" if fits else "on disk"
    tell(f"decoded photographs, {needed / 2**30:.2f} GiB, are kept {where}")
    return "memory" if fits else "disk"


class PhotoStore:
    """A list of square photographs; item i is (3, side, side) uint8.

    Every file is decoded once when the store is made, by one of the processes that share a run.
    "memory" keeps the pixels in memory, which worker processes share; "disk" keeps them in a file
    that all runs and processes of a machine share; "none" only checks which files can be read and
    decodes again for each item. A file that cannot be read is named once, on standard error, and
    left out.

    Args:
        paths: the photographs.
        size: of the squares, as `resized` takes it.
        mode: "memory", "disk" or "none".
        folder: holds the caches on disk; `photos` in the user's cache folder if it is None.

    Attributes:
        paths: the photographs that could be read, in the order given.
        left_out: how many could not be read.
        size: of the squares.
        cache_name: tells the photographs and the size of a cache on disk; None for other modes.

    Raises:
        UserError: no file can be read, or the folder cannot be written to.
        WorkError: the disk is full.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        size: int | CentreCrop,
        mode: str = "memory",
        folder: str | Path | None = None,
        *,
        _loaded: tuple[list[int], Tensor | CacheFile | None] | None = None,
    ) -> None:
        # The rows of `paths` that could be read, and the pixels of all rows unless mode is "none":
        self._rows, self._pixels = _loaded or _load(paths, [size], mode, folder)[0]
        self.paths = [paths[row] for row in self._rows]
        self.left_out = len(paths) - len(self.paths)
        self.size = size
        on_disk = isinstance(self._pixels, CacheFile)
        self.cache_name = self._pixels.path.stem if on_disk else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self._pixels is None:
            return torch.from_numpy(decode(self.paths[index], self.size))
        return self._pixels[self._rows[index]]


def load_photos(
    paths: Sequence[str | Path],
    sizes: Sequence[int | CentreCrop],
    mode: str = "memory",
    folder: str | Path | None = None,
) -> list[PhotoStore]:
    """Make a `PhotoStore` of each size, decoding every file once for all of them.

    The arguments and errors are those of `PhotoStore`. All stores hold the same photographs; no
    sizes read nothing.
    """
    if not sizes:
        return []
    loaded = _load(paths, sizes, mode, folder)
    return [
        PhotoStore(paths, size, mode, folder, _loaded=part)
        for size, part in zip(sizes, loaded, strict=True)
    ]


def _load(
    paths: Sequence[str | Path],
    sizes: Sequence[int | CentreCrop],
    mode: str,
    folder: str | Path | None,
) -> list[tuple[list[int], Tensor | CacheFile | None]]:
    """Load photographs in several sizes.

    Returns:
        For each size the rows of `paths` that can be read, the same for all, and the pixels of all
        rows, (N, 3, size, size) uint8, or None if mode is "none".
    """
    if mode not in CACHE_MODES:
        raise UserError(f"unknown cache {mode!r}; choose one of {', '.join(CACHE_MODES)}")
    if not paths:
        raise UserError("there are no photographs to load; check the folder")
    left_out: dict[int, str] = {}  # row: reason
    own = distributed.shard(len(paths))
    if mode == "disk":
        kept = _open_caches(paths, sizes, Path(folder or cache_folder() / "photos"))
        for cache in kept:
            left_out |= cache.left_out
    elif mode == "memory":
        kept = [torch.zeros(_shape(paths, size), dtype=torch.uint8) for size in sizes]
        for row, images in _decode_all(paths, own, sizes, left_out):
            for pixels, image in zip(kept, images, strict=True):
                pixels[row] = torch.from_numpy(image)
        for pixels in kept:
            distributed.complete(pixels)
    else:
        kept = [None] * len(sizes)
        for _ in _decode_all(paths, own, [], left_out):
            pass
    left_out = _merged(left_out)
    for _, reason in sorted(left_out.items()):
        warn(f"warning: {reason}; it is left out")
    rows = [row for row in range(len(paths)) if row not in left_out]
    if not rows:
        raise UserError(
            f"none of the {len(paths)} files in {os.path.dirname(paths[0])} can be read as a "
            "photograph; check the folder"
        )
    return [(rows, pixels) for pixels in kept]


def _merged(left_out: dict[int, str]) -> dict[int, str]:
    """What all processes have left out."""
    return {row: reason for each in distributed.gather(left_out) for row, reason in each.items()}


def _decode_all(
    paths: Sequence[str | Path],
    rows: range,
    sizes: Sequence[int | CentreCrop],
    left_out: dict[int, str],
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Decode rows of `paths` on all cores; add those that cannot be read to `left_out`.

    Yields:
        The row in `paths` and the photograph in each size, in order.
    """

    def attempt(path: str | Path) -> list[np.ndarray] | UnreadablePhoto:
        try:
            photo = read_rgb(path)
        except UnreadablePhoto as error:
            return error
        return [resized(photo, size) for size in sizes]

    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // distributed.local_world_size()))
    try:
        progress = tqdm(
            pool.map(attempt, (paths[row] for row in rows)),
            total=len(rows),
            desc="decoding",
            unit="photo",
            leave=False,
            disable=None if shows_progress() else True,
        )
        for row, result in zip(rows, progress, strict=True):
            if isinstance(result, UnreadablePhoto):
                left_out[row] = str(result)
            else:
                yield row, result
    finally:
        pool.shutdown(cancel_futures=True)  # else a failed run would go on to read all the rest


class CacheFile:
    """The pixels of a cache on disk, mapped read-only: item i is (3, S, S) uint8, a copy.

    A pickled one maps the file anew, so worker processes are never sent its pixels.

    Args:
        path: the .npy file; beside it a .json names the rows that were left out.
        shape: (N, 3, S, S), which the file must have.

    Raises:
        Exception: the files are missing or damaged; numpy and json raise many kinds.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        reasons = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.left_out = {int(row): str(reason) for row, reason in reasons.items()}
        self._pixels = np.load(path, mmap_mode="r")
        size = self._pixels.offset + self._pixels.nbytes
        if self._pixels.shape != shape or self._pixels.dtype != np.uint8:
            raise ValueError(f"it holds {self._pixels.dtype} of shape {self._pixels.shape}")
        if path.stat().st_size != size:
            raise ValueError(f"it has {path.stat().st_size} bytes instead of {size}")

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(np.array(self._pixels[row]))

    def __reduce__(self) -> tuple[type, tuple]:
        return CacheFile, (self.path, self._pixels.shape)


def _open_caches(
    paths: Sequence[str | Path], sizes: Sequence[int | CentreCrop], folder: Path
) -> list[CacheFile]:
    """Open the caches of the photographs, one for each size; fill those missing or damaged."""
    name = _fingerprint(paths)
    files = {size: folder / f"{name}_{size}.npy" for size in sizes}
    if not any(distributed.gather(_missing(files, paths))):
        return [CacheFile(files[size], _shape(paths, size)) for size in sizes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            run = distributed.broadcast(secrets.token_hex())
            for own_turn in distributed.leaders_in_turn():  # so no two runs wait for each other
                if own_turn:
                    locks.enter_context(locked(folder / f"{name}.lock", run))
            missing = distributed.gather(_missing(files, paths, remove=True))
            wanted = {size: file for size, file in files.items() if size in set().union(*missing)}
            if wanted:
                _fill(wanted, paths)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); choose --cache memory"
        ) from error
    return [CacheFile(files[size], _shape(paths, size)) for size in sizes]


def _shape(paths: Sequence[str | Path], size: int | CentreCrop) -> tuple[int, int, int, int]:
    side = size.side if isinstance(size, CentreCrop) else size
    return len(paths), 3, side, side


def _fingerprint(paths: Sequence[str | Path]) -> str:
    """Name a cache after the place, size, time of change and readability of its photographs."""
    digest = hashlib.sha256(SETTINGS.encode())
    folders: dict[str, str] = {}  # resolving each path by itself would take long
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.join(os.path.realpath(folder), "")
        place, linked = folders[folder] + name, False
        try:
            status = os.lstat(place)
            if linked := stat.S_ISLNK(status.st_mode):
                status = os.stat(place)
            state = (status.st_size, status.st_mtime_ns, os.access(place, os.R_OK))
        except OSError as error:  # a broken link, for instance
            state = (error.errno,)
        if linked:
            place = os.path.realpath(place)
        digest.update(repr((place, *state)).encode())
    return digest.hexdigest()[:32]


def _missing(
    files: dict[int | CentreCrop, Path], paths: Sequence[str | Path], remove: bool = False
) -> set[int | CentreCrop]:
    """The sizes whose cache is not there or damaged; `remove` removes those, and names them."""
    missing = set()
    for size, file in files.items():
        try:
            CacheFile(file, _shape(paths, size))
        except Exception as error:
            missing.add(size)
            if remove and file.exists() and distributed.local_rank() == 0:
                warn(f"warning: {file} is damaged ({error}); building it anew")
                file.unlink(missing_ok=True)
    return missing


def _fill(files: dict[int | CentreCrop, Path], paths: Sequence[str | Path]) -> None:
    """Decode the photographs into cache files, whole or not at all.

    The processes of a machine share the work and the files, which the first of them makes. Ordinary
    writes, not a mapped file: on a full disk, writing to a mapping kills the process.
    """
    left_out: dict[int, str] = {}
    try:
        with ExitStack() as stack:
            temporaries = {}
            if distributed.local_rank() == 0:
                for size, file in files.items():
                    temporaries[size] = stack.enter_context(atomic_path(file))
                    _write_empty(temporaries[size], _shape(paths, size))
            temporaries = distributed.of_this_machine(temporaries)
            streams = [stack.enter_context(temporaries[size].open("r+b")) for size in files]
            starts = list(map(_pixels_start, streams))
            own = distributed.local_shard(len(paths))
            for row, images in _decode_all(paths, own, list(files), left_out):
                for stream, start, image in zip(streams, starts, images, strict=True):
                    stream.seek(start + row * image.nbytes)  # rows that are left out stay empty
                    stream.write(image)
            for stream in streams:
                stream.flush()
            left_out = _merged(left_out)
            if distributed.local_rank() == 0:
                for file in files.values():  # before the .npy files, which so never stand alone
                    with atomic_path(file.with_suffix(".json")) as notes:
                        notes.write_text(json.dumps(left_out), encoding="utf-8")
        distributed.wait_for_all()  # until all files have their names
    except WorkError as error:
        raise WorkError(f"{error}; make room or choose --cache memory") from error


def _write_empty(file: Path, shape: tuple[int, ...]) -> None:
    """Write a .npy file of zeros, which takes no room yet."""
    with file.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + math.prod(shape))


def _pixels_start(stream: BinaryIO) -> int:
    """Where the numbers of an open .npy file begin."""
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    return stream.tell()
