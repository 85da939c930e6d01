"""Score many pairs at once: files are read while the networks compute, in bounded memory."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from data.pairs import Pair
from evaluation.fid import FeatureStatistics, inception_features
from utils import metrics

BATCH, BATCH_ON_CPU = 16, 2  # pairs of one size that go through the networks together
LPIPS_PIXELS = 2_000_000  # of one side of a batch; its features take some hundred bytes each
WAITING_BYTES = 512 * 2**20  # of pairs that wait for others of their size
MAX_WORKERS = 8


@dataclass
class Scores:
    """What is known of one pair.

    Attributes:
        pair: its files.
        size: (width, height) in pixels.
        values: protocol -> metric -> value.
        previews: version ("gt", "enhanced", "input") -> a small picture, for the report.
        faults: sentences on what could not be read without keeping the pair from its scores.
        resized: whether the enhanced image was brought to the ground truth's size.
    """

    pair: Pair
    size: tuple[int, int]
    values: dict[str, dict[str, float]]
    previews: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    resized: bool = False


@dataclass
class LeftOut:
    """A pair that could not be scored; each sentence names a file and says why."""

    reasons: list[str]


@dataclass
class Loaded:
    """A pair that has been read, with what the networks need of it."""

    scores: Scores
    lpips_pixels: dict[str, tuple[np.ndarray, np.ndarray]]  # protocol -> ground truth, enhanced
    inception_pixels: Tensor | None  # (2, 3, 299, 299): ground truth, enhanced

    def bytes(self) -> int:
        """Memory that it takes while it waits, about."""
        arrays = [side for sides in self.lpips_pixels.values() for side in sides]
        if self.inception_pixels is not None:
            arrays.append(self.inception_pixels)
        return sum(array.nbytes for array in arrays) + sum(map(len, self.scores.previews.values()))


@dataclass
class Networks:
    """The networks that score, and what FID has seen so far.

    Attributes:
        device: where they are.
        lpips: `lpips.LPIPS`, or None.
        fid: pytorch-fid's Inception, or None.
        gt: statistics of the ground truths' features.
        enhanced: of the enhanced images'.
    """

    device: torch.device
    lpips: nn.Module | None = None
    fid: nn.Module | None = None
    gt: FeatureStatistics = field(default_factory=FeatureStatistics)
    enhanced: FeatureStatistics = field(default_factory=FeatureStatistics)

    def compute(self, batch: Sequence[Loaded]) -> tuple[list[Scores], np.ndarray | None]:
        """Complete pairs of equal size; returns them, and features (2 N, 2048) for FID."""
        for protocol in batch[0].lpips_pixels if self.lpips else ():
            sides = [loaded.lpips_pixels[protocol] for loaded in batch]
            height, width = sides[0][0].shape[:2]
            step = max(1, LPIPS_PIXELS // (height * width))
            for start in range(0, len(batch), step):
                gt, enhanced = map(np.stack, zip(*sides[start : start + step], strict=True))
                distances = metrics.lpips_distances(self.lpips, gt, enhanced, protocol)
                for loaded, distance in zip(batch[start : start + step], distances, strict=True):
                    loaded.scores.values[protocol]["lpips"] = distance
        features = None
        if self.fid:
            images = torch.cat([loaded.inception_pixels for loaded in batch])
            features = inception_features(self.fid, images)
        return [loaded.scores for loaded in batch], features

    def take_in(
        self, results: list[Scores | LeftOut], features: np.ndarray | None
    ) -> list[Scores | LeftOut]:
        """Add a batch's features to FID's statistics; returns its results."""
        if features is not None:
            self.gt.add(features[0::2])
            self.enhanced.add(features[1::2])
        return results


def score_pairs(
    pairs: Iterable[Pair], load: Callable[[Pair], Loaded | LeftOut], networks: Networks
) -> Iterator[Scores | LeftOut]:
    """Score pairs; they come in the order of the batches they fall into, the same in every run.

    On a CPU every thread computes a batch of its own on one core, which beats several cores on
    one batch; another device gets one batch at a time.

    Args:
        pairs: what to score.
        load: reads one pair; called in several threads.
        networks: complete what was loaded; their FID statistics take in every batch.

    Yields:
        `Scores`, or the `LeftOut` that `load` gave, or one for a pair too large for the memory.
    """
    with _workers() as workers:
        on_cpu = networks.device.type == "cpu"
        computing, batch_length = (workers, BATCH_ON_CPU) if on_cpu else (1, BATCH)
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(computing) as computers:
            running: deque[Future] = deque()
            try:
                for batch in _batches(_ahead(readers, load, pairs, 2 * workers), batch_length):
                    if isinstance(batch, LeftOut):
                        yield batch
                        continue
                    running.append(computers.submit(_compute, networks, batch))
                    while len(running) > computing:
                        yield from networks.take_in(*running.popleft().result())
                while running:
                    yield from networks.take_in(*running.popleft().result())
            finally:  # after Ctrl-C nothing that waits is begun
                for pool in (readers, computers):
                    pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _workers() -> Iterator[int]:
    """Share torch's cores out among threads; yields how many there should be."""
    cores = torch.get_num_threads()
    workers = min(MAX_WORKERS, cores)
    torch.set_num_threads(cores // workers)
    try:
        yield workers
    finally:
        torch.set_num_threads(cores)


def _load(load: Callable[[Pair], Loaded | LeftOut], pair: Pair) -> Loaded | LeftOut:
    try:
        return load(pair)
    except (MemoryError, RuntimeError) as error:
        return _too_large(pair, error)


def _compute(
    networks: Networks, batch: Sequence[Loaded]
) -> tuple[list[Scores | LeftOut], np.ndarray | None]:
    try:
        return networks.compute(batch)
    except (MemoryError, RuntimeError) as error:
        return [_too_large(loaded.scores.pair, error) for loaded in batch], None


def _too_large(pair: Pair, error: Exception) -> LeftOut:
    """Leave out a pair that memory ran out for; any other error is raised again."""
    lacking = r"(out of|not enough|allocate) memory"  # as torch says it; a bad access is no lack
    if isinstance(error, RuntimeError) and not re.search(lacking, str(error)):
        raise error
    return LeftOut([f"{pair.gt} and {pair.enhanced} need more memory than there is"])


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[Pair], Loaded], pairs: Iterable[Pair], ahead: int
) -> Iterator[Loaded | LeftOut]:
    """Load pairs in order, at most `ahead` of them before they are asked for."""
    loading: deque[Future] = deque()
    for pair in pairs:
        loading.append(pool.submit(_load, load, pair))
        if len(loading) > ahead:
            yield loading.popleft().result()
    while loading:
        yield loading.popleft().result()


def _batches(loaded: Iterable[Loaded | LeftOut], length: int) -> Iterator[list[Loaded] | LeftOut]:
    """Collect pairs of equal size into batches; what waits for its like is bounded."""
    waiting: dict[tuple[int, int] | None, list[Loaded]] = {}
    for item in loaded:
        if isinstance(item, LeftOut):
            yield item
            continue
        size = item.scores.size if item.lpips_pixels else None  # Inception sees all in one size
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) == length:
            yield waiting.pop(size)
        while sum(one.bytes() for batch in waiting.values() for one in batch) > WAITING_BYTES:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()
