"""Score image pairs, several at once, in bounded memory."""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.images import UnreadablePhoto, read_rgb
from data.pairs import Pair
from evaluation.networks import inception_features, lpips_distance
from evaluation.niqe import Pristine, Unmeasurable, niqe
from utils.errors import WorkError, lacks_memory
from utils.metrics import fidelity

NO_REFERENCE = "no_reference"  # stands for a protocol where a metric needs no ground truth
LIMITED = {"lpips": ("standard", "released"), "fid": ("standard",)}  # metrics not of all protocols
SMALLEST = {"psnr": 1, "ssim": 7, "lpips": 32, "fid": 1}  # pixels: SSIM's window, LPIPS' poolings
MAX_THREADS = 8
PIXELS_AT_ONCE = 8_000_000  # of a CPU; LPIPS takes about 300 MB a megapixel
PREVIEW_QUALITY = 82  # of WebP


@dataclass
class Scores:
    """What is known of one pair.

    Attributes:
        pair: its files.
        size: (width, height) in pixels, of the ground truth if there is one.
        values: protocol or `NO_REFERENCE` -> metric -> value.
        features: Inception's of ground truth and enhanced image, (2, 2048) float32, if FID is
            computed.
        resized: whether the enhanced image was brought to the ground truth's size.
        previews: version ("gt", "enhanced", "input") -> the report's small picture, a file.
        faults: sentences on files that could not be read, but that no score depends on.
    """

    pair: Pair
    size: tuple[int, int]
    values: dict[str, dict[str, float]]
    features: np.ndarray | None = None
    resized: bool = False
    previews: dict[str, Path] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass
class LeftOut:
    """A pair that could not be scored; each sentence names a file and says why."""

    reasons: list[str]


@dataclass
class Scorer:
    """What is computed of a pair, and by which networks.

    Attributes:
        device: where the networks are.
        protocols: of `PROTOCOLS` and `GT_MEAN`; none where there is nothing to compare.
        metrics: that were asked for. An image too small for one of them is left out, even where
            its network is missing, so that every machine scores the same images.
        networks: metric ("lpips", "fid", "niqe") -> what computes it, in evaluation mode.
        resize_to_gt: bring an enhanced image of another size to its ground truth's.
        preview_folder: where the report's previews are written; None writes none.
        preview_side: their longer side in pixels.
        preview_error: why previews could not be written; scoring goes on without them.
    """

    device: torch.device
    protocols: Sequence[str]
    metrics: Sequence[str]
    networks: Mapping[str, nn.Module | Pristine] = field(default_factory=dict)
    resize_to_gt: bool = False
    preview_folder: Path | None = None
    preview_side: int = 0
    preview_error: WorkError | None = None

    def __post_init__(self):
        self._computing = 0  # pixels that networks look at now
        self._changed = threading.Condition()

    def score(self, pair: Pair) -> Scores | LeftOut:
        """Read and score a pair; one that memory runs out for is left out."""
        try:
            return self._score(pair)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            files = " and ".join(str(path) for path in (pair.gt, pair.enhanced) if path)
            return LeftOut([f"{files} need more memory than there is"])

    def _score(self, pair: Pair) -> Scores | LeftOut:
        paths = {"gt": pair.gt, "enhanced": pair.enhanced}
        if "niqe" in self.metrics:
            paths["input"] = pair.input
        images, faults = read_images({name: path for name, path in paths.items() if path})
        if faults := faults or self._misfits(pair, images):
            return LeftOut(faults)
        scores = Scores(pair, next(iter(images.values())).shape[1::-1], {})
        if "niqe" in self.metrics:
            try:
                scores.values[NO_REFERENCE] = self._naturalness(paths, images)
            except Unmeasurable as error:
                return LeftOut([str(error)])
        if pair.gt:
            self._compare(scores, images)
        if self.preview_folder and not self.preview_error:
            self._add_previews(scores, images)
        return scores

    def _misfits(self, pair: Pair, images: Mapping[str, np.ndarray]) -> list[str]:
        """Say why an enhanced image cannot be compared with its ground truth."""
        if not (pair.gt and self.protocols):
            return []
        size, enhanced_size = (images[version].shape[1::-1] for version in ("gt", "enhanced"))
        if enhanced_size != size and not self.resize_to_gt:
            conflict = size_conflict(pair, size, enhanced_size)
            return [f"sizes differ: {conflict}; --resize_to_gt resizes the second"]
        for metric in self.metrics:
            enlarged = metric == "lpips" and "standard" not in self.protocols
            if min(size) < SMALLEST.get(metric, 0) and not enlarged:
                needed = f"{SMALLEST[metric]} pixels that {metric.upper()} needs"
                return [f"{pair.gt} is smaller than the {needed}"]
        return []

    def _naturalness(
        self, paths: Mapping[str, Path | None], images: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Compute NIQE of the enhanced image, and where there is an input, of that and the change.

        Raises:
            Unmeasurable: one has none; the text names it.
        """
        values = {}
        for version, metric in (("input", "niqe_input"), ("enhanced", "niqe")):
            if version not in images:
                continue
            try:
                values[metric] = niqe(images[version], self.networks["niqe"])
            except Unmeasurable as error:
                raise Unmeasurable(f"{paths[version]} {error}") from error
        if "niqe_input" in values:
            values["niqe_change"] = values["niqe"] - values["niqe_input"]
        return values

    def _compare(self, scores: Scores, images: dict[str, np.ndarray]) -> None:
        """Add the scores against ground truth; resizes the enhanced image where it has to."""
        gt, enhanced = images["gt"], images["enhanced"]
        scores.resized = enhanced.shape != gt.shape
        if scores.resized:
            enhanced = Image.fromarray(enhanced).resize(scores.size, Image.Resampling.BICUBIC)
            images["enhanced"] = enhanced = np.array(enhanced)
        values = {name: fidelity(gt, enhanced, name, self.metrics) for name in self.protocols}
        with self._turn(gt.shape[0] * gt.shape[1]):
            if network := self.networks.get("lpips"):
                for protocol in (name for name in LIMITED["lpips"] if name in values):
                    values[protocol]["lpips"] = lpips_distance(network, gt, enhanced, protocol)
            if network := self.networks.get("fid"):
                scores.features = inception_features(network, gt, enhanced)
        scores.values = values | scores.values

    def _add_previews(self, scores: Scores, images: dict[str, np.ndarray]) -> None:
        """Write small pictures of all versions, unless there is no room for them."""
        if scores.pair.input and "input" not in images:
            untouched, scores.faults = read_images({"input": scores.pair.input})
            images |= untouched
        try:
            for version, pixels in images.items():
                scores.previews[version] = save_preview(
                    pixels, self.preview_folder, self.preview_side
                )
        except WorkError as error:
            self.preview_error = error

    @contextmanager
    def _turn(self, pixels: int) -> Iterator[None]:
        """Wait until the networks may look at so many pixels more: of one pair, or of a few small
        ones on a CPU, where every thread computes on a core of its own."""
        limit = PIXELS_AT_ONCE if self.device.type == "cpu" else 0
        with self._changed:
            self._changed.wait_for(
                lambda: self._computing == 0 or self._computing + pixels <= limit
            )
            self._computing += pixels
        try:
            yield
        finally:
            with self._changed:
                self._computing -= pixels
                self._changed.notify_all()


def read_images(paths: Mapping[str, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read images as (H, W, 3) uint8; those that cannot be read become sentences instead."""
    images, faults = {}, []
    for version, path in paths.items():
        try:
            images[version] = read_rgb(path)
        except UnreadablePhoto as error:
            faults.append(str(error))
    return images, faults


def save_preview(pixels: np.ndarray, folder: Path, side: int) -> Path:
    """Write an image, (H, W, 3) uint8, reduced to at most `side` pixels a side, under a new name.

    Raises:
        WorkError: it cannot be written.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    with new_preview(folder) as file:
        image.save(file, "WEBP", quality=PREVIEW_QUALITY, method=2)
    return Path(file.name)


@contextmanager
def new_preview(folder: Path) -> Iterator[IO[bytes]]:
    """Open a new file for a preview, to be written in the block.

    Raises:
        WorkError: it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".webp", delete=False) as file:
            yield file
    except OSError as error:
        raise WorkError(
            f"cannot write the report's previews to {folder}: {error.strerror or error}; "
            "set TMPDIR to a folder with space"
        ) from error


def size_conflict(pair: Pair, gt: tuple[int, int], enhanced: tuple[int, int]) -> str:
    """Say which two files are how large."""
    return "{} ({}x{}) and {} ({}x{})".format(pair.gt, *gt, pair.enhanced, *enhanced)


def score_pairs(
    pairs: Iterable[Pair], scorer: Scorer, patience: float | None = None
) -> Iterator[Scores | LeftOut | None]:
    """Score pairs in threads, at most a few ahead of what is asked for.

    A pair for each thread, and a core for each thread, beats several cores on one pair.

    Args:
        pairs: what is scored.
        scorer: scores each.
        patience: seconds after which None is yielded if no result has come; None waits for it.

    Yields:
        A result for each pair, in the order of the pairs.
    """
    with _shared_cores() as threads:
        pool, waiting = ThreadPoolExecutor(threads), deque[Future]()
        try:
            for pair in pairs:
                waiting.append(pool.submit(scorer.score, pair))
                if len(waiting) > 2 * threads:
                    yield from _await(waiting.popleft(), patience)
            while waiting:
                yield from _await(waiting.popleft(), patience)
        finally:  # after an error or Ctrl-C nothing is begun, and what has begun is left behind
            pool.shutdown(wait=False, cancel_futures=True)


def _await(future: Future, patience: float | None) -> Iterator[Scores | LeftOut | None]:
    """Yield a result, and None whenever `patience` is over before it has come."""
    while not wait([future], patience).done:
        yield None
    yield future.result()


@contextmanager
def _shared_cores() -> Iterator[int]:
    """Divide torch's cores among threads; yields how many threads there should be."""
    cores = torch.get_num_threads()
    threads = min(MAX_THREADS, cores)
    torch.set_num_threads(cores // threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(cores)
