"""What decides a run's result: its options, photographs and weights, recorded to be compared.

A resumed run must have read the same, under whatever path: photographs of the same names and sizes
in bytes (their contents are not compared, which would take long), and weights of the same contents.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.listing import list_photos
from data.pairs import Pair, counted
from data.photo_store import PhotoStore
from models.encoders import Encoder
from utils import checkpoint
from utils.errors import UserError, printable

FOLDERS = ("backlit_images_path", "well_lit_images_path")
STARTS = ("unet_pretrain_dir", "guidance_pretrain_dir")
ENCODERS = ("clip_weights", "identity_weights")
# Options that a resumed run may change: they decide where and how long, not what is computed.
FREE_ON_RESUME = frozenset(
    {
        *("device", "resume", "save_dir", "exp_name", "num_workers", "cache"),
        *("max_iters", "num_epochs", "keep", "tensorboard"),
        *("val_input_path", "val_gt_path", "val_iter", "val_size"),
    }
)
# What these name is compared by its contents instead.
READ = frozenset(
    {
        *("backlit_images_path", "well_lit_images_path", "clip_weights", "identity_weights"),
        *("unet_pretrain_dir", "load_pretrain_unet"),
        *("guidance_pretrain_dir", "load_pretrain_guidance"),
    }
)


@dataclass
class Record:
    """What decides a run's result, by the options' names.

    Attributes:
        options: those whose values decide it.
        photographs: names and sizes in bytes of the files in either folder; -1 for a broken link.
        left_out: those of them that could not be read.
        weights: the SHA-256 of what was read; None where nothing was.
    """

    options: dict[str, bool | int | float | str | list[int] | None]
    photographs: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    weights: dict[str, str | None] = field(default_factory=dict)

    def check(self) -> None:
        """Check a record that was saved.

        Raises:
            ValueError: something is missing in it.
        """
        if not self.photographs.keys() == self.left_out.keys() == set(FOLDERS):
            raise ValueError("record does not have the photographs of both folders")
        if self.weights.keys() != {*STARTS, *ENCODERS}:
            raise ValueError("record does not have all weights")


class Reading:
    """What this process reads, held against what the run that it goes on with had read.

    Args:
        args: of a training script, with the pretraining flags resolved.
        folder: of the run, for errors.
        before: the saved run's record; None for a new run.

    Attributes:
        record: of what was read so far.
        backlit, well_lit: the photographs in either folder.
        held_out: pairs for validation, which decide nothing.

    Raises:
        UserError: an option, a photograph or weights to start from are not those of before; or both
            folders are the same.
    """

    def __init__(self, args: Namespace, folder: Path, before: Record | None) -> None:
        self.folder, self.before = folder, before
        self.record = Record(deciding(args))
        self.held_out: list[Pair] = []
        for name in STARTS:
            path = getattr(args, name, None)
            self._add_weights(name, None if path is None else checkpoint.fingerprint_file(path))
        if before is not None:
            self._compare_options(args.defaults)
        folders = [getattr(args, name) for name in FOLDERS]
        self.backlit, self.well_lit = map(list_photos, folders)
        if os.path.samefile(*folders):
            raise UserError(
                f"-b and -r are the same folder, {folders[0]}; there is nothing to learn"
            )
        for name, paths in zip(FOLDERS, (self.backlit, self.well_lit), strict=True):
            sizes = {os.path.basename(path): _size(path) for path in paths}
            if before is not None:
                self._compare_photographs(name, sizes)
                sizes = before.photographs[name]  # has those that could not be read and are gone
            self.record.photographs[name] = sizes

    def add_encoders(self, guidance: Encoder, identity: Encoder | None) -> None:
        """Note the frozen encoders; `identity` is None where none is loaded.

        Raises:
            UserError: their weights are not those of before.
        """
        for name, encoder in zip(ENCODERS, (guidance, identity), strict=True):
            if encoder is not None:
                self._add_weights(name, encoder.fingerprint)

    def add_photos(self, backlit: Sequence[PhotoStore], well_lit: Sequence[PhotoStore]) -> int:
        """Note which photographs could be read; return how many that are there could not.

        Args:
            backlit: stores of the same backlit photographs, or none if they were not read.
            well_lit: likewise.

        Raises:
            UserError: other ones than before.
        """
        count, listed = 0, (self.backlit, self.well_lit)
        for name, stores, paths in zip(FOLDERS, (backlit, well_lit), listed, strict=True):
            before = now = set(self.before.left_out[name] if self.before else ())
            if stores:
                read = map(os.path.basename, stores[0].paths)
                now = self.record.photographs[name].keys() - read
            if self.before:
                self._refuse(name, now ^ before, "can be read no more, or only now")
            self.record.left_out[name] = sorted(now)
            count += len(now.intersection(map(os.path.basename, paths)))
        return count

    def _compare_options(self, defaults: dict) -> None:
        """Compare options; one that the saved run's code did not have yet counts as its default."""
        before = {**defaults, **self.before.options}
        changed = [
            name
            for name, value in self.record.options.items()
            if (isinstance(value, bool), value) != (isinstance(before[name], bool), before[name])
        ]
        if changed:
            was = ", ".join(f"--{name} was {before[name]}" for name in sorted(changed))
            raise UserError(
                f"the run in {self.folder} had other arguments: {was}; give the same to resume"
            )

    def _compare_photographs(self, name: str, now: dict[str, int]) -> None:
        """Compare names and sizes; a photograph that could not be read may be gone."""
        before = self.before.photographs[name]
        came_or_changed = dict(now.items() - before.items())
        went = before.keys() - now.keys() - set(self.before.left_out[name])
        self._refuse(name, {*came_or_changed, *went}, "came, went or changed")

    def _refuse(self, name: str, photographs: set[str], what: str) -> None:
        if photographs:
            raise UserError(
                f"{counted(len(photographs), 'photograph')} of --{name} {what} since the run in "
                f"{self.folder} read them, such as {printable(min(photographs))}; bring the folder "
                "back to what it was, or start another run"
            )

    def _add_weights(self, name: str, sha256: str | None) -> None:
        self.record.weights[name] = sha256
        if self.before and sha256 != self.before.weights[name]:
            had = "others" if self.before.weights[name] else "none"
            raise UserError(
                f"the weights of --{name} are not those of the run in {self.folder}, which had "
                f"{had}; give the same to resume, or start another run"
            )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def deciding(args: Namespace) -> dict:
    """The options whose values decide a run's result, which a resumed run must repeat."""
    free = FREE_ON_RESUME - {"max_iters", "num_epochs"} if args.lr_cosine else FREE_ON_RESUME
    return {
        name: value for name, value in vars(args).items() if name not in free | READ | {"defaults"}
    }
