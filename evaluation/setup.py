"""What compute_metrics.py sets up before it scores; an error here may name a flag."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch

from data.images import UnreadablePhoto, read_rgb, upright_size
from data.listing import list_photos, look_up
from data.pairs import Matching, Pair, abridged, match_images, single_images
from data.result_names import LONGEST_NAME
from evaluation.networks import LoadedNetwork, load_inception, load_lpips, load_niqe
from evaluation.scoring import LIMITED, size_conflict
from evaluation.summary import LABELS, METRICS, UNMATCHED
from utils import distributed
from utils.errors import UserError, warn

FEW_FOR_FID = "FID needs at least 2 pairs that can be scored; there is 1"
LISTED = 20  # unmatched files that the terminal shows; the JSON file has them all


def set_up_pairs(args: argparse.Namespace) -> Matching:
    """Find the pairs, and check all that can be checked before work.

    Raises:
        UserError: as `find_pairs`, `check_outputs` and `check_sizes`, or FID needs more pairs.
    """
    matching = find_pairs(args)
    if "fid" in (args.metrics or ()) and len(matching.pairs) < 2:
        raise UserError(FEW_FOR_FID)
    check_outputs(args, matching)
    for kind, files in matching.leftovers.items():
        if files:
            warn(f"{len(files)} {UNMATCHED[kind]}: {abridged(files, LISTED)}")
    compares = set(args.metrics or METRICS) != {"niqe"}
    if args.gt_images_path and compares and not args.resize_to_gt:
        check_sizes(matching.pairs)
    return matching


def find_pairs(args: argparse.Namespace) -> Matching:
    """List and match the images of the folders, and the inputs if they are given.

    NIQE of inputs is compared, so that a pair without one is no pair there.

    Raises:
        UserError: a folder is missing or empty, nothing matches, or an image has several partners.
    """
    if not args.gt_images_path:
        return find_enhanced(args)
    roots = [Path(args.gt_images_path), Path(args.enhanced_images_path)]
    gt, enhanced = (list_photos(root, recursive=True) for root in roots)
    matching = match_images(gt, enhanced, *roots)
    if args.input_images_path:
        root = Path(args.input_images_path)
        inputs = match_images(gt, list_photos(root, recursive=True), roots[0], root)
        by_gt = {pair.gt: pair.enhanced for pair in inputs.pairs}
        matching.pairs = [pair._replace(input=by_gt.pop(pair.gt, None)) for pair in matching.pairs]
        matching.leftovers["set_aside"] += inputs.leftovers["set_aside"]
        matching.leftovers["input"] = [*inputs.leftovers["enhanced"], *by_gt.values()]
        matching.leftovers["without_input"] = [p.gt for p in matching.pairs if not p.input]
        if "niqe" in (args.metrics or ()):
            matching.pairs = [pair for pair in matching.pairs if pair.input]
            if not matching.pairs:
                raise UserError(f"no pair has an image in {root}; check --input_images_path")
    return matching


def find_enhanced(args: argparse.Namespace) -> Matching:
    """List the enhanced images, and match them with the inputs if they are given.

    Raises:
        UserError: as `find_pairs`.
    """
    root = Path(args.enhanced_images_path)
    enhanced = list_photos(root, recursive=True)
    if not args.input_images_path:
        return single_images(enhanced, root)
    input_root = Path(args.input_images_path)
    matching = match_images(list_photos(input_root, recursive=True), enhanced, input_root, root)
    pairs = [Pair(pair.name, None, pair.enhanced, pair.gt) for pair in matching.pairs]
    leftovers = {
        "input": matching.leftovers["gt"],
        "without_input": matching.leftovers["enhanced"],
        "set_aside": matching.leftovers["set_aside"],
    }
    return Matching(pairs, leftovers)


def check_outputs(args: argparse.Namespace, matching: Matching) -> None:
    """Refuse outputs that cannot be written, or would replace an image or each other.

    Raises:
        UserError: there is such an output.
    """
    taken = set()
    for output in (args.csv, args.json, args.report):
        if output is None:
            continue
        path = Path(os.path.realpath(output))  # Path.resolve fails on loops
        other = os.path.exists(path) and not os.path.isfile(path)  # a folder, a device; "" is one
        folder = next(folder for folder in path.parents if os.path.lexists(folder))
        longest = max(len(os.fsencode(part)) for part in path.parts)
        writable = os.path.isdir(folder) and os.access(folder, os.W_OK)
        if other or not writable or longest > LONGEST_NAME:
            raise UserError(
                f"cannot write {output!r}; give a file in a folder that you may write to"
            )
        images = chain(*((pair.gt, pair.enhanced, pair.input) for pair in matching.pairs))
        if str(path) in taken or _is_among(path, chain(images, *matching.leftovers.values())):
            raise UserError(f"{output} is an image or another output; give another name")
        taken.add(str(path))


def _is_among(path: Path, images: Iterable[str | None]) -> bool:
    """Whether a file, links followed, is one of the images."""
    number, _ = look_up(path)
    return number is not None and any(
        image and look_up(image)[0] == number and os.path.realpath(image) == str(path)
        for image in images
    )


def check_sizes(pairs: Sequence[Pair]) -> None:
    """Compare the sizes of all pairs before any work, by their headers.

    Raises:
        UserError: sizes differ; the text names the pairs.
    """
    differing = []
    for pair in pairs:
        try:
            sizes = [upright_size(path) for path in (pair.gt, pair.enhanced)]
            if sizes[0] == sizes[1][::-1]:  # a header may not tell of an image lying on its side
                sizes = [read_rgb(path).shape[1::-1] for path in (pair.gt, pair.enhanced)]
        except UnreadablePhoto:
            continue  # named when its turn comes
        if sizes[0] != sizes[1]:
            differing.append(size_conflict(pair, *sizes))
    if differing:
        raise UserError(
            f"sizes differ in {len(differing)} of {len(pairs)} pairs: {abridged(differing)}; "
            "--resize_to_gt resizes the enhanced images"
        )


def load_networks(
    args: argparse.Namespace,
    protocols: Sequence[str],
    metrics: Sequence[str],
    device: torch.device,
) -> tuple[dict[str, LoadedNetwork], dict[str, str]]:
    """Load the networks of the metrics.

    Returns:
        Metric -> network, and metric -> why there is none.

    Raises:
        UserError: weights were given, or a metric was asked for by name, and cannot be loaded.
    """
    networks, unavailable = {}, {}
    for metric in metrics:
        try:
            if metric == "niqe":
                networks[metric] = load_niqe(args.niqe_parameters)
            elif not set(LIMITED.get(metric, ())) & set(protocols):
                continue
            elif metric == "lpips":
                networks[metric] = load_lpips(args.lpips_net, args.lpips_weights, device)
            else:
                networks[metric] = load_inception(args.fid_weights, device)
        except UserError as error:
            if args.metrics or getattr(args, f"{metric}_weights"):
                raise
            unavailable[metric] = str(error)
    return networks, unavailable


def load_networks_alike(
    args: argparse.Namespace,
    protocols: Sequence[str],
    metrics: Sequence[str],
    device: torch.device,
) -> tuple[dict[str, LoadedNetwork], dict[str, str]]:
    """Load the networks in all processes of this run; what one of them lacks, none has.

    Returns:
        As `load_networks`.

    Raises:
        UserError: as `load_networks`, or weights are not the same everywhere.
    """
    with distributed.together(), distributed.one_first():
        networks, unavailable = load_networks(args, protocols, metrics, device)
    told = distributed.gather(
        (unavailable, {metric: loaded.sha256 for metric, loaded in networks.items()})
    )
    for lacking, _ in reversed(told):
        unavailable |= lacking
    networks = {name: loaded for name, loaded in networks.items() if name not in unavailable}
    with distributed.together():
        for metric, loaded in networks.items():
            if any(hashes[metric] != loaded.sha256 for _, hashes in told):
                raise UserError(
                    f"the processes have different weights for {LABELS[metric]}; put the same file "
                    "on every machine"
                )
    return networks, unavailable
