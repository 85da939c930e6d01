"""Score enhanced images against ground truth: PSNR, SSIM, LPIPS and FID, in two protocols.

    python compute_metrics.py --gt_images_path gt/ --enhanced_images_path enhanced/ \
        [--report report.html] [--csv scores.csv] [--json scores.json]

Exit status: 0 all images scored; 1 some left out, each is named; 2 nothing done; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.images import UnreadablePhoto, list_photos, read_rgb, upright_size
from data.pairs import Matching, Pair, abridged, counted, match_images
from evaluation.fid import inception_pixels
from evaluation.networks import LPIPS_BACKBONES, Backbone, load_inception, load_lpips
from evaluation.report import Report, preview, preview_side
from evaluation.scoring import LeftOut, Loaded, Networks, Scores, score_pairs
from evaluation.summary import summarise, table_lines, write_csv, write_json
from utils.errors import UserError, exit_with, printable
from utils.memory import keep_freed_memory
from utils.metrics import LABELS, METRICS, PROTOCOLS, SMALLEST, fidelity, lpips_pixels
from utils.options import choose_device

WITHOUT_NETWORK = ("psnr", "ssim")
LPIPS_NET = "alex"
SOME_LEFT_OUT = 1  # exit status
LISTED = 20  # unmatched files that the terminal shows; the JSON file has them all
UNMATCHED = {  # as the JSON file and the terminal name such files
    "gt": "without an enhanced image",
    "enhanced": "without a ground truth",
    "set_aside": "set aside, since only (1) of such names counts",
    "input": "of the inputs without a pair",
    "without_input": "without an input",
}
LIBRARIES = (
    *("torch", "torchvision", "numpy", "scipy"),
    *("scikit-image", "pillow", "lpips", "pytorch-fid"),
)


def main(args: argparse.Namespace) -> int:
    """Score a folder against another; returns the exit status."""
    # Setup pairs:
    protocols = PROTOCOLS if args.protocol == "both" else (args.protocol,)
    check_arguments(args, protocols)
    matching = find_pairs(args)
    check_outputs(args, matching)
    check_fid(args, len(matching.pairs))
    for kind, files in leftovers(matching).items():
        if files:
            print(f"{len(files)} {UNMATCHED[kind]}: {abridged(files, LISTED)}", file=sys.stderr)
    if not args.resize_to_gt:
        check_sizes(matching.pairs)

    # Setup networks:
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # the same figures on every device
    device = choose_device(args.device)
    backbones, unavailable = load_backbones(args, protocols, device)
    asked = args.metrics or METRICS
    wanted = [name for name in asked if name in WITHOUT_NETWORK or name in backbones]
    networks = Networks(device, **{name: one.network for name, one in backbones.items()})

    # Score:
    report = Report() if args.report else None
    load = partial(
        load_pair,
        protocols=protocols,
        wanted=wanted,
        asked=asked,
        resize=args.resize_to_gt,
        side=preview_side(len(matching.pairs)) if report else None,
    )
    scored: list[Scores] = []
    left_out: list[str] = []
    with tqdm(total=len(matching.pairs), unit="pair", disable=None) as progress:
        for result in score_pairs(matching.pairs, load, networks):
            progress.update()
            if isinstance(result, LeftOut):
                left_out += result.reasons
                continue
            if report:
                report.add(result)
            scored.append(replace(result, previews={}))  # they are large
            left_out += result.faults
    for reason in left_out:
        print(f"left out: {printable(reason)}", file=sys.stderr)
    if not scored:
        raise UserError("none of the pairs could be scored")
    check_fid(args, len(scored))
    order = {pair: place for place, pair in enumerate(matching.pairs)}
    scored.sort(key=lambda scores: order[scores.pair])

    # Report:
    summary = summarise(scored, protocols, wanted, unavailable, networks)
    resized = sum(scores.resized for scores in scored)
    origin = describe_origin(args, backbones, matching, left_out) | {"resized": resized}
    try:
        if args.csv:
            write_csv(args.csv, scored, origin)
        if args.json:
            write_json(args.json, scored, summary, origin)
        if report:
            report.write(args.report, scored, summary, origin)
    finally:  # last, for nobody may listen any more; and even if a file cannot be written
        print("\n".join(table_lines(summary, len(scored))))
    if resized:
        print(f"note: {counted(resized, 'enhanced image')} resized to the ground truth's size")
    if left_out:
        print(f"{counted(len(left_out), 'file')} could not be used; the reasons are above")
    return SOME_LEFT_OUT if left_out else 0


def check_arguments(args: argparse.Namespace, protocols: Sequence[str]) -> None:
    """Refuse what could only fail, or do nothing, after the work.

    Raises:
        UserError: an option makes no sense.
    """
    if "fid" in (args.metrics or ()) and "standard" not in protocols:
        raise UserError("the released protocol has no FID; use --protocol standard or both")
    if args.input_images_path and not args.report:
        raise UserError("--input_images_path is only shown in the report; add --report FILE.html")
    for flag, given, metric in (
        ("--lpips_weights", args.lpips_weights is not None, "lpips"),
        ("--lpips_net", args.lpips_net != LPIPS_NET, "lpips"),
        ("--fid_weights", args.fid_weights is not None, "fid"),
    ):
        computed = metric in (args.metrics or METRICS)
        if given and not (computed and (metric != "fid" or "standard" in protocols)):
            raise UserError(f"{flag} does nothing where {LABELS[metric]} is not computed; omit it")


def check_outputs(args: argparse.Namespace, matching: Matching) -> None:
    """Refuse outputs that cannot be written, or would replace an image or each other.

    Raises:
        UserError: there is such an output.
    """
    images = [path for pair in matching.pairs for path in (pair.gt, pair.enhanced, pair.input)]
    images += [path for files in leftovers(matching).values() for path in files]
    taken = {path.resolve() for path in images if path}
    for output in (args.csv, args.json, args.report):
        if output is None:
            continue
        path = Path(output).resolve()
        other = path.exists() and not path.is_file()  # a folder, a device; "" is a folder too
        if other or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(
                f"cannot write {output!r}; give a file in a folder that you may write to"
            )
        if path in taken:
            raise UserError(f"{output} is an image or another output; give another name")
        taken.add(path)


def check_fid(args: argparse.Namespace, pairs: int) -> None:
    """Refuse to leave out an FID that was asked for by name.

    Raises:
        UserError: there are fewer than two pairs for it.
    """
    if "fid" in (args.metrics or ()) and pairs < 2:
        raise UserError("FID needs at least 2 pairs that can be scored; there is 1")


def find_pairs(args: argparse.Namespace) -> Matching:
    """List and match the folders, the input's too if it is given.

    Raises:
        UserError: a folder is missing or empty, or nothing or too much belongs together.
    """
    roots = [Path(args.gt_images_path), Path(args.enhanced_images_path)]
    gt, enhanced = (list_photos(root, recursive=True) for root in roots)
    matching = match_images(gt, enhanced, *roots)
    if args.input_images_path:
        root = Path(args.input_images_path)
        inputs = match_images(gt, list_photos(root, recursive=True), roots[0], root)
        by_gt = {pair.gt: pair.enhanced for pair in inputs.pairs}
        matching.pairs = [replace(pair, input=by_gt.pop(pair.gt, None)) for pair in matching.pairs]
        matching.input_only = [*inputs.enhanced_only, *inputs.set_aside, *by_gt.values()]
        matching.without_input = [pair.gt for pair in matching.pairs if not pair.input]
    return matching


def leftovers(matching: Matching) -> dict[str, list[Path]]:
    """Files that have no partner, by the names of `UNMATCHED`."""
    return {
        "gt": matching.gt_only,
        "enhanced": matching.enhanced_only,
        "set_aside": matching.set_aside,
        "input": matching.input_only,
        "without_input": matching.without_input,
    }


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


def size_conflict(pair: Pair, gt: tuple[int, int], enhanced: tuple[int, int]) -> str:
    """Say which two files are how large."""
    return "{} ({}x{}) and {} ({}x{})".format(pair.gt, *gt, pair.enhanced, *enhanced)


def load_backbones(
    args: argparse.Namespace, protocols: Sequence[str], device: torch.device
) -> tuple[dict[str, Backbone], dict[str, str]]:
    """Load the networks of the wanted metrics.

    Returns:
        Metric -> network, and metric -> why there is none.

    Raises:
        UserError: weights cannot be had for a metric that was asked for by name, or were given.
    """
    loaders = {"lpips": partial(load_lpips, args.lpips_net, args.lpips_weights, device)}
    if "standard" in protocols:
        loaders["fid"] = partial(load_inception, args.fid_weights, device)
    backbones, unavailable = {}, {}
    for metric, load in loaders.items():
        if metric not in (args.metrics or METRICS):
            continue
        try:
            backbones[metric] = load()
        except UserError as error:
            if args.metrics or getattr(args, f"{metric}_weights"):
                raise
            unavailable[metric] = str(error)
    return backbones, unavailable


def load_pair(
    pair: Pair,
    protocols: Sequence[str],
    wanted: Sequence[str],
    resize: bool,
    side: int | None,
    asked: Sequence[str] = METRICS,
) -> Loaded | LeftOut:
    """Read a pair, score what needs no network, and prepare what does.

    Args:
        pair: its files.
        protocols: of `PROTOCOLS`.
        wanted: of `METRICS`.
        resize: bring the enhanced image to the ground truth's size.
        side: longer side of the previews for the report; None makes none.
        asked: of `METRICS`; an image too small for one of them is left out, even where its
            network is missing, so that every machine scores the same images.
    """
    photos, faults = [], []
    for path in (pair.gt, pair.enhanced):
        try:
            photos.append(read_rgb(path))
        except UnreadablePhoto as error:
            faults.append(str(error))
    if faults:
        return LeftOut(faults)
    gt, enhanced = photos
    sizes = gt.shape[1::-1], enhanced.shape[1::-1]
    resized = sizes[0] != sizes[1]
    if resized:
        if not resize:
            conflict = size_conflict(pair, *sizes)
            return LeftOut([f"sizes differ: {conflict}; --resize_to_gt resizes the second"])
        enhanced = np.array(Image.fromarray(enhanced).resize(sizes[0], Image.Resampling.BICUBIC))
    for metric in asked:
        enlarged = metric == "lpips" and "standard" not in protocols
        if min(sizes[0]) < SMALLEST[metric] and not enlarged:
            needed = f"{SMALLEST[metric]} pixels that {metric.upper()} needs"
            return LeftOut([f"{pair.gt} is smaller than the {needed}"])

    values = {name: fidelity(gt, enhanced, name, wanted) for name in protocols}
    scores = Scores(pair, sizes[0], values, resized=resized)
    if side:
        versions = {"gt": gt, "enhanced": enhanced}
        if pair.input:
            try:
                versions["input"] = read_rgb(pair.input)
            except UnreadablePhoto as error:
                scores.faults.append(str(error))
        scores.previews = {name: preview(pixels, side) for name, pixels in versions.items()}
    for_lpips = protocols if "lpips" in wanted else ()
    return Loaded(
        scores,
        {name: (lpips_pixels(gt, name), lpips_pixels(enhanced, name)) for name in for_lpips},
        inception_pixels(gt, enhanced) if "fid" in wanted else None,
    )


def describe_origin(
    args: argparse.Namespace,
    backbones: Mapping[str, Backbone],
    matching: Matching,
    left_out: Sequence[str],
) -> dict[str, object]:
    """Gather what a figure must be traced to: options, versions, weight files, files left over."""
    return {
        "options": vars(args),
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
        "weights": {
            metric: {"file": str(backbone.weights), "sha256": backbone.sha256}
            for metric, backbone in backbones.items()
        },
        "unmatched": {
            kind: [str(path) for path in files] for kind, files in leftovers(matching).items()
        },
        "left_out": list(left_out),
    }


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    images = parser.add_argument_group("images, paired by name, extension and case aside")
    images.add_argument("--gt_images_path", required=True, metavar="FOLDER", help="ground truth")
    images.add_argument(
        "--enhanced_images_path", required=True, metavar="FOLDER", help="what is scored"
    )
    images.add_argument(
        "--input_images_path", metavar="FOLDER", help="untouched images, to see in the report"
    )
    images.add_argument(
        "--resize_to_gt",
        action="store_true",
        help="resize enhanced images of another size to their ground truth's (bicubic)",
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--protocol",
        choices=[*PROTOCOLS, "both"],
        default="both",
        help="standard: on RGB, LPIPS at native size, FID; released: as the RAVE authors' script "
        "(default: %(default)s)",
    )
    scores.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="METRIC",
        help=f"of {', '.join(METRICS)}; a network that is missing is then an error "
        "(default: all whose networks can be had)",
    )
    scores.add_argument(
        "--lpips_net",
        choices=LPIPS_BACKBONES,
        default=LPIPS_NET,
        help="backbone of LPIPS (default: %(default)s)",
    )
    scores.add_argument(
        "--lpips_weights", metavar="FILE", help="torchvision's weights of that backbone"
    )
    scores.add_argument("--fid_weights", metavar="FILE", help="pytorch-fid's Inception weights")
    scores.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    files = parser.add_argument_group("files to write")
    files.add_argument("--csv", metavar="FILE", help="scores of every image, a line each")
    files.add_argument("--json", metavar="FILE", help="the same, the table, versions and weights")
    files.add_argument("--report", metavar="FILE", help="one HTML page to look at the images")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
