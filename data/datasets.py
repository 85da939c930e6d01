"""The data sets of the two training scripts, and the endless stream of their batches.

An item is a pure function of (seed, epoch, index) and an epoch's order one of (seed, epoch). So the
batches are the same for any number of worker processes, and a run that stopped after k batches
goes on with `start=k`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import (
    ENHANCER_ZOOM,
    GUIDANCE_ZOOM,
    TURNS,
    Draw,
    apply_draw,
    generator_for,
    random_draw,
)
from data.images import UnreadablePhoto, read_rgb
from data.photo_store import PhotoStore
from utils.errors import UserError

BACKLIT, WELL_LIT = 0, 1  # labels (method.md, 4)
ENHANCER_SIZE = 512
GUIDANCE_SIZE = 256

Key = tuple[int, int]  # (epoch, index)


class EnhancerImages(Dataset):
    """Backlit photographs for the enhancer.

    Item (epoch, index) is an image (3, S, S) float32 in [0, 1] and its index. With partners it is
    (2, 3, S, S): the image and its well-lit partner, augmented alike; where there is no partner,
    the image stands for it.

    Args:
        paths: backlit photographs.
        image_size: side S in pixels.
        seed: of the augmentation.
        cache: "memory", "disk" or "none", as in `PhotoStore`.
        cache_folder: where "disk" keeps its files.
        augment: False gives the resized photographs as they are.
        partners: well-lit photographs; one belongs to the backlit one of the same stem.

    Attributes:
        photos: the store of the backlit photographs.
        has_partner: (N,) bool.

    Raises:
        UserError: as `PhotoStore`, or no partner belongs to any photograph.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        image_size: int = ENHANCER_SIZE,
        seed: int = 0,
        cache: str = "memory",
        cache_folder: str | Path | None = None,
        augment: bool = True,
        partners: Sequence[Path] | None = None,
    ) -> None:
        self.photos = PhotoStore(paths, image_size, cache, cache_folder)
        self.seed = seed
        self.augment = augment
        self.partners: PhotoStore | None = None
        self._partner_rows: list[int | None] = [None] * len(self.photos)
        if partners is not None:
            stems = {path.stem for path in self.photos.paths}
            wanted = [path for path in partners if path.stem in stems]
            if not wanted:
                raise UserError(
                    f"no well-lit photograph has the name of a backlit one in "
                    f"{self.photos.paths[0].parent}, which --paired_residual needs"
                )
            self.partners = PhotoStore(wanted, image_size, cache, cache_folder)
            rows = {path.stem: row for row, path in enumerate(self.partners.paths)}
            self._partner_rows = [rows.get(path.stem) for path in self.photos.paths]
        self.has_partner = torch.tensor([row is not None for row in self._partner_rows])

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        image = to_unit(self.photos[key[1]])
        if self.partners is not None:
            row = self._partner_rows[key[1]]
            partner = image if row is None else to_unit(self.partners[row])
            image = torch.stack([image, partner])
        if self.augment:
            draw = random_draw(generator_for("draw", self.seed, *key), ENHANCER_ZOOM)
            image = apply_draw(draw, image)
        return image, key[1]

    def first(self, most: int) -> Tensor:
        """The first photographs as they are, (N, 3, S, S) float32 in [0, 1], N up to `most`."""
        return torch.stack([to_unit(self.photos[row]) for row in range(min(most, len(self)))])


class GuidanceImages(Dataset):
    """Backlit and well-lit photographs, as many of one as of the other, for the initialisation.

    The shorter list is repeated to the longer one's length. Item (epoch, index) is an image
    (3, S, S) float32 in [0, 1], its place in `Turns` or -1, and its label, 0 backlit, 1 well-lit.

    Args:
        backlit: backlit photographs, (3, S, S) uint8 each.
        well_lit: well-lit ones.
        seed: of the augmentation.
    """

    def __init__(self, backlit: PhotoStore, well_lit: PhotoStore, seed: int = 0) -> None:
        self.turns = Turns([backlit, well_lit])
        self.seed = seed

    def __len__(self) -> int:
        return 2 * max(len(level) for level in self.turns.levels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        label, index = divmod(key[1], len(self) // 2)
        draw = _guidance_draw(self.seed, key)
        image = to_unit(self.turns.photo(label, index))
        return apply_draw(draw, image), self.turns.place(label, index, draw), label


class LevelTuples(Dataset):
    """Tuples from worst to best for the refinement: backlit, enhanced ones, well-lit.

    All images of a tuple are augmented alike; shorter levels are repeated. Item (epoch, index) is
    (levels, 3, S, S) float32 in [0, 1], and the images' places in `Turns` or -1, (levels,).

    Args:
        levels: each a `PhotoStore` or a tensor (M, 3, S, S), uint8 or float in [0, 1].
        seed: of the augmentation.
    """

    def __init__(self, levels: Sequence[PhotoStore | Tensor], seed: int = 0) -> None:
        self.turns = Turns(levels)
        self.seed = seed

    def __len__(self) -> int:
        return max(len(level) for level in self.turns.levels)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        draw = _guidance_draw(self.seed, key)
        levels = range(len(self.turns.levels))
        images = torch.stack([to_unit(self.turns.photo(level, key[1])) for level in levels])
        places = torch.tensor([self.turns.place(level, key[1], draw) for level in levels])
        return apply_draw(draw, images), places


class Turns(Dataset):
    """All images of some levels in all their flips and transpositions.

    About half of the draws do no more than that, so that what is computed of the `Turns` once
    serves them all. Item i is (3, S, S) float32 in [0, 1].

    Args:
        levels: each a `PhotoStore` or a tensor (M, 3, S, S), uint8 or float in [0, 1].
    """

    def __init__(self, levels: Sequence[PhotoStore | Tensor]) -> None:
        self.levels = list(levels)

    def __len__(self) -> int:
        return TURNS * sum(len(level) for level in self.levels)

    def __getitem__(self, place: int) -> Tensor:
        row, turn = divmod(place, TURNS)
        for level in self.levels:
            if row < len(level):
                return apply_draw(Draw.of_turn(turn), to_unit(level[row]))
            row -= len(level)
        raise IndexError(place)

    def photo(self, level: int, index: int) -> Tensor:
        """The image of a level that stands at `index`, where the level is repeated."""
        return self.levels[level][index % len(self.levels[level])]

    def place(self, level: int, index: int, draw: Draw) -> int:
        """Which item the draw makes of that image; -1 if it zooms or rotates."""
        if draw.turn is None:
            return -1
        row = sum(len(before) for before in self.levels[:level]) + index % len(self.levels[level])
        return TURNS * row + draw.turn


def read_photos(paths: Sequence[Path], ahead: int = 8) -> Iterator[tuple[Path, Image.Image]]:
    """Decode photographs one after another, a few ahead in threads; name and skip the unreadable.

    Args:
        paths: the photographs.
        ahead: how many are decoded at once, and so how many memory must hold.

    Yields:
        Path and upright RGB photograph, in the order given.
    """

    def attempt(path: Path) -> np.ndarray | UnreadablePhoto:
        try:
            return read_rgb(path)
        except UnreadablePhoto as error:
            return error

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), ahead):
            some = paths[first : first + ahead]
            for path, photo in zip(some, pool.map(attempt, some), strict=True):
                if isinstance(photo, UnreadablePhoto):
                    print(f"warning: {photo}; it is left out", file=sys.stderr)
                else:
                    yield path, Image.fromarray(photo)


def to_unit(image: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1]; a floating-point image comes back as it is."""
    return image if image.is_floating_point() else image.float().div_(255)


def _guidance_draw(seed: int, key: Key) -> Draw:
    return random_draw(generator_for("draw", seed, *key), GUIDANCE_ZOOM)


class BatchStream(Sampler):
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
    """Batches in one pass; 46 for 368 images in eights (method.md, 7)."""
    return -(-size // batch_size)


def _leave_signals_to_main(_: int) -> None:
    """Let a loading process go on at Ctrl-C or the end of a cluster job's time.

    Both reach all processes of a run; the main one then finishes its iteration, saves and ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def stream_batches(
    dataset: Dataset, batch_size: int, seed: int = 0, start: int = 0, num_workers: int = 0
) -> Iterator:
    """Load batches without end, the same ones for any `num_workers`.

    Args:
        dataset: one of the data sets above.
        batch_size: items a batch; the last one of an epoch may be smaller.
        seed: of the order.
        start: how many batches a resumed run has already seen.
        num_workers: processes that load; 0 loads in this one.

    Returns:
        An iterator over collated batches, in pinned memory where there is a GPU.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=BatchStream(len(dataset), batch_size, seed, start),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_main,
        generator=torch.Generator(),  # else the loader would advance the global one
    )
    return iter(loader)
