"""Score enhanced images against ground truth: PSNR, SSIM, LPIPS and FID, in two protocols.

    python compute_metrics.py --gt_images_path gt/ --enhanced_images_path enhanced/ \\
        [--report report.html] [--csv scores.csv] [--json scores.json]

Exit status: 0 all images scored; 1 failed, or some left out, each of them named; 2 refused before
work began; 130 and 143 ended by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from data.images import UnreadablePhoto, read_rgb, upright_size
from data.listing import list_photos
from data.pairs import Matching, Pair, abridged, counted, match_images
from data.result_names import LONGEST_NAME
from evaluation.networks import LPIPS_BACKBONES, LoadedNetwork, load_inception, load_lpips
from evaluation.report import preview_side, write_report
from evaluation.scoring import LeftOut, Scorer, Scores, score_pairs, size_conflict
from evaluation.summary import (
    LABELS,
    METRICS,
    Summary,
    summarise,
    table_lines,
    write_csv,
    write_json,
)
from utils.errors import SOME_LEFT_OUT, UserError, WorkError, tell, warn
from utils.memory import keep_freed_memory
from utils.metrics import PROTOCOLS
from utils.options import ArgumentParser, choose_device
from utils.script import exit_with

LPIPS_NET = "alex"
FEW_FOR_FID = "FID needs at least 2 pairs that can be scored; there is 1"
LISTED = 20  # unmatched files that the terminal shows; the JSON file has them all
UNMATCHED = {  # what the terminal says of leftovers
    "gt": "without an enhanced image",
    "enhanced": "without a ground truth",
    "set_aside": "set aside, since only (1) of such names counts",
    "input": "of the inputs without a pair",
    "without_input": "without an input",
}
LIBRARIES = (
    *("torch", "torchvision", "numpy", "scipy"),
    *("scikit-image", "pillow", "imagecodecs", "tifffile", "lpips", "pytorch-fid"),
)


def main(args: argparse.Namespace) -> int:
    """Score a folder against another; returns the exit status."""
    # Setup pairs:
    protocols = PROTOCOLS if args.protocol == "both" else (args.protocol,)
    metrics = args.metrics or METRICS
    check_arguments(args, protocols, metrics)
    matching = find_pairs(args)
    fid_required = "fid" in (args.metrics or ())
    if fid_required and len(matching.pairs) < 2:
        raise UserError(FEW_FOR_FID)
    check_outputs(args, matching)
    for kind, files in matching.leftovers.items():
        if files:
            warn(f"{len(files)} {UNMATCHED[kind]}: {abridged(files, LISTED)}")
    if not args.resize_to_gt:
        check_sizes(matching.pairs)

    # Setup networks:
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # the same figures on every device
    device = choose_device(args.device)
    networks, unavailable = load_networks(args, protocols, metrics, device)

    with tempfile.TemporaryDirectory() if args.report else nullcontext() as preview_folder:
        # Score:
        scorer = Scorer(
            device,
            protocols,
            metrics,
            {metric: loaded.network for metric, loaded in networks.items()},
            resize_to_gt=args.resize_to_gt,
            preview_folder=Path(preview_folder) if preview_folder else None,
            preview_side=preview_side(len(matching.pairs)),
        )
        scored: list[Scores] = []
        left_out: list[str] = []
        results = score_pairs(matching.pairs, scorer)
        for result in tqdm(results, total=len(matching.pairs), unit="pair", disable=None):
            if isinstance(result, LeftOut):
                left_out += result.reasons
            else:
                scored.append(result)
                left_out += result.faults
        for reason in left_out:
            warn(f"left out: {reason}")
        if not scored:
            raise WorkError("none of the pairs could be scored")
        if fid_required and len(scored) < 2:
            raise WorkError(FEW_FOR_FID)

        # Report:
        summary = summarise(scored, unavailable)
        resized = sum(scores.resized for scores in scored)
        origin = describe_origin(args, networks, matching, left_out) | {"resized": resized}
        try:
            write_outputs(args, scored, summary, origin, scorer.preview_error)
        finally:  # even if a file cannot be written; last, since nobody may read it any more
            for line in table_lines(summary, len(scored)):
                tell(line)
    if resized:
        tell(f"note: {counted(resized, 'enhanced image')} resized to the ground truth's size")
    if left_out:
        tell(f"{counted(len(left_out), 'file')} could not be used; the reasons are above")
    unmatched = [path for kind in ("gt", "enhanced") for path in matching.leftovers.get(kind, ())]
    if unmatched:
        tell(f"{counted(len(unmatched), 'file')} without a partner, named above: no score")
    return SOME_LEFT_OUT if left_out or unmatched else 0


def check_arguments(
    args: argparse.Namespace, protocols: Sequence[str], metrics: Sequence[str]
) -> None:
    """Refuse options that could only fail, or do nothing.

    Raises:
        UserError: there is such an option.
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
        computed = metric in metrics and (metric != "fid" or "standard" in protocols)
        if given and not computed:
            raise UserError(f"{flag} does nothing where {LABELS[metric]} is not computed; omit it")


def find_pairs(args: argparse.Namespace) -> Matching:
    """List and match the images of the folders, and the inputs if they are given.

    Raises:
        UserError: a folder is missing or empty, nothing matches, or an image has several partners.
    """
    roots = [Path(args.gt_images_path), Path(args.enhanced_images_path)]
    gt, enhanced = (list_photos(root, recursive=True) for root in roots)
    matching = match_images(gt, enhanced, *roots)
    if args.input_images_path:
        root = Path(args.input_images_path)
        inputs = match_images(gt, list_photos(root, recursive=True), roots[0], root)
        by_gt = {pair.gt: pair.enhanced for pair in inputs.pairs}
        matching.pairs = [replace(pair, input=by_gt.pop(pair.gt, None)) for pair in matching.pairs]
        alone = inputs.leftovers["enhanced"] + inputs.leftovers["set_aside"]
        matching.leftovers["input"] = [*alone, *by_gt.values()]
        matching.leftovers["without_input"] = [p.gt for p in matching.pairs if not p.input]
    return matching


def check_outputs(args: argparse.Namespace, matching: Matching) -> None:
    """Refuse outputs that cannot be written, or would replace an image or each other.

    Raises:
        UserError: there is such an output.
    """
    images = [path for pair in matching.pairs for path in (pair.gt, pair.enhanced, pair.input)]
    images += [path for files in matching.leftovers.values() for path in files]
    taken = {os.path.realpath(path) for path in images if path}  # Path.resolve fails on loops
    for output in (args.csv, args.json, args.report):
        if output is None:
            continue
        path = Path(os.path.realpath(output))
        other = os.path.exists(path) and not os.path.isfile(path)  # a folder, a device; "" is one
        folder = next(folder for folder in path.parents if os.path.lexists(folder))
        longest = max(len(os.fsencode(part)) for part in path.parts)
        writable = os.path.isdir(folder) and os.access(folder, os.W_OK)
        if other or not writable or longest > LONGEST_NAME:
            raise UserError(
                f"cannot write {output!r}; give a file in a folder that you may write to"
            )
        if str(path) in taken:
            raise UserError(f"{output} is an image or another output; give another name")
        taken.add(str(path))


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
            if metric == "lpips":
                networks[metric] = load_lpips(args.lpips_net, args.lpips_weights, device)
            elif metric == "fid" and "standard" in protocols:
                networks[metric] = load_inception(args.fid_weights, device)
        except UserError as error:
            if args.metrics or getattr(args, f"{metric}_weights"):
                raise
            unavailable[metric] = str(error)
    return networks, unavailable


def describe_origin(
    args: argparse.Namespace,
    networks: Mapping[str, LoadedNetwork],
    matching: Matching,
    left_out: Sequence[str],
) -> dict[str, object]:
    """Gather what the scores depend on: options, versions, weight files, files left over."""
    return {
        "options": vars(args),
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
        "weights": {
            metric: {"file": str(loaded.weights), "sha256": loaded.sha256}
            for metric, loaded in networks.items()
        },
        "unmatched": {
            kind: [str(path) for path in files] for kind, files in matching.leftovers.items()
        },
        "left_out": list(left_out),
    }


def write_outputs(
    args: argparse.Namespace,
    scored: Sequence[Scores],
    summary: Summary,
    origin: Mapping[str, object],
    preview_error: WorkError | None,
) -> None:
    """Write the files that were asked for.

    Raises:
        WorkError: one cannot be written, or the report has no previews.
    """
    try:
        if args.csv:
            write_csv(args.csv, scored, origin)
        if args.json:
            write_json(args.json, scored, summary, origin)
        if preview_error:
            raise preview_error
        if args.report:
            write_report(args.report, scored, summary, origin)
    except UserError as error:
        raise WorkError(str(error)) from error


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    images = parser.add_argument_group("images, paired by name, extension and case aside")
    images.add_argument("--gt_images_path", required=True, metavar="FOLDER", help="ground truth")
    images.add_argument(
        "--enhanced_images_path", required=True, metavar="FOLDER", help="what is scored"
    )
    images.add_argument(
        "--input_images_path",
        metavar="FOLDER",
        help="untouched images, to see in the report (default: none)",
    )
    images.add_argument(
        "--resize_to_gt",
        action="store_true",
        help="resize enhanced images of another size to their ground truth's, bicubic "
        "(default: they are an error)",
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
        "--lpips_weights",
        metavar="FILE",
        help="torchvision's weights of that backbone (default: torch's hub cache or a download)",
    )
    scores.add_argument(
        "--fid_weights",
        metavar="FILE",
        help="pytorch-fid's Inception weights (default: torch's hub cache or a download)",
    )
    scores.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    files = parser.add_argument_group("files to write (default: none)")
    files.add_argument("--csv", metavar="FILE", help="scores of every image, a line each")
    files.add_argument("--json", metavar="FILE", help="the same, the table, versions and weights")
    files.add_argument("--report", metavar="FILE", help="one HTML page to look at the images")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
