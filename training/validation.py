"""PSNR and SSIM of the enhancer in training on pairs that are held out."""

from __future__ import annotations

import math
import os
import statistics
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.listing import list_photos
from data.pairs import Pair, abridged, match_images
from data.photo_store import load_photos
from models.pretrained import PhotoEnhancer
from training.origin import Origin, fingerprint
from utils import checkpoint, distributed
from utils.errors import UserError, WorkError, warn
from utils.metrics import fidelity

FILE = "snapshots_model/best_val.pth"


class Validation:
    """Pairs that are held out, and the best enhancer by them.

    The processes of a run share the pairs. Nothing here changes what is trained.

    Args:
        pairs: of `find_pairs`.
        args: val_size, val_iter, cache, device.
        folder: of the run.
        origin: keeps the best score beside what it was computed of.

    Attributes:
        left_out: photographs that cannot be read; their pairs are left out.
        photographs: what tells them from others, for run.json.

    Raises:
        UserError: no pair can be read.
    """

    def __init__(self, pairs: list[Pair], args: Namespace, folder: Path, origin: Origin) -> None:
        self.folder, self.origin = folder, origin
        self.every = args.val_iter
        mode = "memory" if args.cache == "auto" else args.cache
        stores = [
            load_photos(paths, [args.val_size], mode)[0]
            for paths in ([pair.enhanced for pair in pairs], [pair.gt for pair in pairs])
        ]
        self.left_out = sum(store.left_out for store in stores)
        rows = [{path: row for row, path in enumerate(store.paths)} for store in stores]
        both = [pair for pair in pairs if pair.enhanced in rows[0] and pair.gt in rows[1]]
        if not both:
            raise UserError("no pair of --val_input_path and --val_gt_path can be read")
        self._stores = stores
        self._rows = [(rows[0][pair.enhanced], rows[1][pair.gt]) for pair in both]
        files = {
            f"{kind} of {pair.name}": os.stat(path).st_size
            for pair in both
            for kind, path in (("input", pair.enhanced), ("ground truth", pair.gt))
        }
        self.photographs = {
            "count": len(both),
            "size": args.val_size,
            "names_and_sizes_sha256": fingerprint(files),
        }
        self._network = PhotoEnhancer().to(args.device, memory_format=torch.channels_last)

    def score_if_due(self, iteration: int, since: int, enhancer: nn.Module) -> dict[str, float]:
        """Score an enhancer every so many iterations, and keep its weights if it is the best.

        Args:
            iteration: of the enhancer in the whole run.
            since: iterations since this was last asked.
            enhancer: in training.

        Returns:
            "val_psnr" in dB and "val_ssim", means over the pairs; nothing where none is due.
        """
        if iteration // self.every == (iteration - since) // self.every:
            return {}
        scores = self.score(enhancer.state_dict())
        if distributed.is_main() and scores["val_psnr"] > self._best_psnr():
            checkpoint.save_weights(enhancer, self.folder / FILE)
            best = {"iteration": iteration, "photographs": self.photographs, **scores}
            self.origin.write_best_validation(best)
        return scores

    def score(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute the means of PSNR and SSIM, standard protocol, of results in 8 bits.

        A pair whose result equals its ground truth, an infinite PSNR, is left out of that mean.

        Args:
            weights: of an enhancer; it pads by reflection, as at inference (docs/method.md 1).
        """
        self._network.load_state_dict(weights)
        own = distributed.shard(len(self._rows))
        scores = [self._score_pair(*self._rows[number]) for number in own]
        everyone = [score for part in distributed.gather(scores) for score in part]
        psnrs = [score["psnr"] for score in everyone if math.isfinite(score["psnr"])]
        return {
            "val_psnr": statistics.fmean(psnrs) if psnrs else math.inf,
            "val_ssim": statistics.fmean(score["ssim"] for score in everyone),
        }

    def _score_pair(self, input_row: int, gt_row: int) -> dict[str, float]:
        image, gt = (
            np.ascontiguousarray(store[row].numpy().transpose(1, 2, 0))
            for store, row in zip(self._stores, (input_row, gt_row), strict=True)
        )
        try:
            return fidelity(gt, self._network.enhance(image), "standard")
        except FloatingPointError as error:
            raise WorkError(
                "the enhancer gives validation photographs no finite light map; a lower learning "
                "rate may help"
            ) from error

    def _best_psnr(self) -> float:
        """The best mean PSNR of these very photographs so far."""
        best = self.origin.best_validation
        same = best.get("photographs") == self.photographs and (self.folder / FILE).is_file()
        return best.get("val_psnr", -math.inf) if same else -math.inf


def find_pairs(args: Namespace) -> list[Pair]:
    """Pair the photographs held out, by name; none if none are given.

    Args:
        args: val_input_path and val_gt_path.

    Returns:
        Pairs whose `enhanced` is the input.

    Raises:
        UserError: one folder is given without the other, is missing or empty, or nothing matches.
    """
    roots = [args.val_input_path, args.val_gt_path]
    if roots == [None, None]:
        return []
    if None in roots:
        raise UserError("give both --val_input_path and --val_gt_path, or neither")
    inputs, gt = (list_photos(root) for root in roots)
    matching = match_images(gt, inputs, Path(roots[1]), Path(roots[0]))
    alone = [path for kind in ("gt", "enhanced", "set_aside") for path in matching.leftovers[kind]]
    if alone:
        warn(f"warning: without a partner, so not validated: {abridged(alone)}")
    return matching.pairs
