"""The data sets of the two training scripts, and the endless stream of their batches.

An item is a pure function of (seed, epoch, index) and an epoch's order one of (seed, epoch). So the
batches are the same for any number of worker processes, and a run that stopped after k batches
goes on with `start=k`.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import (
    ENHANCER_ZOOM,
    GUIDANCE_ZOOM,
    Draw,
    apply_draw,
    generator_for,
    random_draw,
)
from data.images import UnreadablePhoto
from data.pairs import match_images
from data.photo_store import PhotoStore
from utils import distributed
from utils.signals import ANSWERED, SAVING

GUIDANCE_SIZE = 256
PHOTOS_AT_ONCE = 8  # in memory, where all of a folder are enhanced or embedded

Key = tuple[int, int]  # (epoch, index)
# A process's part of a batch: its share of the batch's items, and their tensors. A process that
# has no item of a small batch gets another one's, with a share of 0.
Part = tuple[float, list[Tensor]]


class EnhancerImages(Dataset):
    """Backlit photographs for the enhancer, and perhaps their well-lit partners.

    Item (epoch, index) is a tuple: the image (3, S, S) float32 in [0, 1]; with partners also the
    partner, likewise and augmented alike, and whether it is one (bool): where a photograph has
    none, it stands for its own.

    Args:
        photos: backlit photographs, (3, S, S) uint8 each.
        seed: of the augmentation.
        partners: well-lit photographs of the same size, paired by name as `match_images` does.

    Raises:
        UserError: no partner belongs to any photograph, or several to one.
    """

    def __init__(
        self, photos: PhotoStore, seed: int = 0, partners: PhotoStore | None = None
    ) -> None:
        self.photos = photos
        self.seed = seed
        self.partners = partners
        if partners is not None:
            folders = (Path(os.path.dirname(store.paths[0])) for store in (partners, photos))
            pairs = match_images(partners.paths, photos.paths, *folders).pairs
            rows = {path: row for row, path in enumerate(partners.paths)}
            rows_of = {pair.enhanced: rows[pair.gt] for pair in pairs}
            self._partner_rows = [rows_of.get(path) for path in photos.paths]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> tuple[Tensor, ...]:
        draw = random_draw(generator_for("draw", self.seed, *key), ENHANCER_ZOOM)
        image = to_unit(self.photos[key[1]])
        if self.partners is None:
            return (apply_draw(draw, image),)
        row = self._partner_rows[key[1]]
        partner = image if row is None else to_unit(self.partners[row])
        image, partner = apply_draw(draw, torch.stack([image, partner]))
        return image, partner, torch.tensor(row is not None)


class GuidanceImages(Dataset):
    """Backlit and well-lit photographs, as many of one as of the other, for the initialisation.

    The shorter list is repeated to the longer one's length. Item (epoch, index) is an image
    (3, S, S) float32 in [0, 1] and its label, 0 backlit, 1 well-lit.

    Args:
        backlit: backlit photographs, (3, S, S) uint8 each.
        well_lit: well-lit ones.
        seed: of the augmentation.
    """

    def __init__(self, backlit: PhotoStore, well_lit: PhotoStore, seed: int = 0) -> None:
        self.photos = backlit, well_lit
        self.seed = seed

    def __len__(self) -> int:
        return 2 * max(map(len, self.photos))

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        label, index = divmod(key[1], len(self) // 2)
        photos = self.photos[label]
        image = to_unit(photos[index % len(photos)])
        return apply_draw(_guidance_draw(self.seed, key), image), torch.tensor(label)


class LevelTuples(Dataset):
    """Tuples from worst to best for the refinement: backlit, enhanced ones, well-lit.

    The enhanced images are the backlit one's own; the well-lit one is drawn independently, also
    from paired folders: both lists are shuffled, each by itself, and the shorter one is repeated
    (docs/method.md 4). All images of a tuple are augmented alike. Item (epoch, index) is a tuple of
    one tensor, (levels, 3, S, S) float32 in [0, 1].

    Args:
        backlit: M photographs, (3, S, S) uint8 each.
        enhanced: of each older to newer round, (M, 3, S, S) uint8: the enhanced photographs.
        well_lit: well-lit photographs.
        seed: of both orders and of the augmentation.
    """

    def __init__(
        self,
        backlit: PhotoStore | Tensor,
        enhanced: Sequence[Tensor],
        well_lit: PhotoStore | Tensor,
        seed: int = 0,
    ) -> None:
        self.backlit, self.enhanced, self.well_lit = backlit, list(enhanced), well_lit
        self.seed = seed
        self.backlit_order, self.well_lit_order = (
            torch.randperm(len(level), generator=generator_for("tuples", name, seed)).tolist()
            for name, level in (("backlit", backlit), ("well-lit", well_lit))
        )

    def __len__(self) -> int:
        return max(len(self.backlit), len(self.well_lit))

    def __getitem__(self, key: Key) -> tuple[Tensor]:
        backlit = self.backlit_order[key[1] % len(self.backlit)]
        well_lit = self.well_lit_order[key[1] % len(self.well_lit)]
        levels = [level[backlit] for level in (self.backlit, *self.enhanced)]
        images = torch.stack([to_unit(image) for image in (*levels, self.well_lit[well_lit])])
        return (apply_draw(_guidance_draw(self.seed, key), images),)


def in_batches(
    photos: PhotoStore, size: int = PHOTOS_AT_ONCE, rows: range | None = None
) -> Iterator[tuple[range, Tensor]]:
    """Yield photographs as they are, in order.

    Args:
        photos: N of them.
        size: how many at most are yielded at once.
        rows: which; None for all.

    Yields:
        Rows of `photos`, and what they hold, (rows, 3, S, S) in [0, 1].
    """
    rows = range(len(photos)) if rows is None else rows
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield part, torch.stack([to_unit(photos[row]) for row in part])


def to_unit(image: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1]; a floating-point image comes back as it is."""
    return image if image.is_floating_point() else image.float().div_(255)


def _guidance_draw(seed: int, key: Key) -> Draw:
    return random_draw(generator_for("draw", seed, *key), GUIDANCE_ZOOM)


class BatchStream:
    """Endless batches of (epoch, index) keys, shuffled anew in each epoch.

    Args:
        size: items in the data set.
        batch_size: the last batch of an epoch may be smaller.
        seed: of the order.
        start: how many batches to skip.
    """

    def __init__(self, size: int, batch_size: int, seed: int = 0, start: int = 0) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, skip = divmod(self.start, batches_per_epoch(self.size, self.batch_size))
        while True:
            order = epoch_order(self.size, self.seed, epoch)
            for first in range(skip * self.batch_size, self.size, self.batch_size):
                yield [(epoch, index) for index in order[first : first + self.batch_size]]
            epoch, skip = epoch + 1, 0


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits `size` items."""
    return torch.randperm(size, generator=generator_for("order", seed, epoch)).tolist()


def batches_per_epoch(size: int, batch_size: int) -> int:
    """Batches in one pass; 46 for 368 images in eights (docs/method.md 7)."""
    return -(-size // batch_size)


class OwnKeys(Sampler):
    """This process's slices of the batches; at least one item of each."""

    def __init__(self, batches: BatchStream) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Key]]:
        for keys in self.batches:
            own = distributed.shard(len(keys))
            yield keys[own.start : own.stop] or keys[:1]


def _leave_signals_to_main(_: int) -> None:
    """Let a loading process ignore Ctrl-C and what a cluster sends to a job.

    They reach all processes of a run; the main one saves its state and ends the others.
    """
    for number in ANSWERED + SAVING:
        signal.signal(number, signal.SIG_IGN)


def stream_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    num_workers: int = 0,
    accumulate: int = 1,
) -> Iterator[list[Part]]:
    """Load batches without end, the same ones for any `num_workers`; start at the first one asked.

    The processes of a run share each batch out among them.

    Args:
        dataset: one of the data sets above.
        batch_size: items a batch; the last one of an epoch may be smaller.
        seed: of the order.
        start: how many batches a resumed run has already seen.
        num_workers: processes that load; 0 loads in this one.
        accumulate: parts that this process computes its items of a batch in, one after another.

    Yields:
        Of each batch this process's parts, at least one; their collated tensors are in pinned
        memory where there is a GPU.

    Raises:
        Exception: whatever loading raised, see `loading_failure`.
    """
    keys = BatchStream(len(dataset), batch_size, seed, start)
    with warnings.catch_warnings():
        # More processes than cores are no mistake: decoding waits for the disk.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            dataset,
            batch_sampler=OwnKeys(keys),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_main,
            generator=torch.Generator(),  # else the loader would advance the global one
        )
        batches = iter(loader)
    for whole, tensors in zip(keys, batches, strict=True):
        own = len(distributed.shard(len(whole)))
        splits = [tensor.tensor_split(max(1, min(accumulate, own))) for tensor in tensors]
        yield [
            (len(part[0]) / len(whole) if own else 0.0, list(part))
            for part in zip(*splits, strict=True)
        ]


def loading_failure(error: BaseException) -> str | None:
    """Say in a sentence what made loading fail; None for errors of another origin.

    Args:
        error: a loading process's, which torch raises again with its traceback as text; or what
            torch raises when such a process dies.
    """
    told = str(error).strip()
    if isinstance(error, UnreadablePhoto):
        reason = told.rpartition("UnreadablePhoto: ")[2]  # a traceback may stand before it
        return f"a photograph cannot be read any more: {reason}"
    shared_memory = "shared memory" in told or "/torch_" in told or "Bus error" in told
    if isinstance(error, RuntimeError | OSError) and shared_memory:
        return (
            "a loading process found no room in shared memory (/dev/shm); give --num_workers 0, "
            "fewer workers, or the container a larger one (docker run --shm-size 2g)"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in told:
        return (
            "a loading process died, for want of memory perhaps; give --num_workers 0 or fewer "
            "workers"
        )
    return None
