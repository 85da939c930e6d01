"""Score enhanced images against ground truth: PSNR, SSIM, LPIPS and FID, in two protocols.

    python compute_metrics.py --gt_images_path gt/ --enhanced_images_path enhanced/ \\
        [--report report.html] [--csv scores.csv] [--json scores.json]
    python compute_metrics.py --enhanced_images_path enhanced/ --metrics niqe

Started by torchrun, its processes share the pairs out; the figures stay the same.
Exit status: 0 all images scored; 1 failed, or some left out, each of them named; 2 refused before
work began; 130 and 143 ended by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from data.pairs import Matching, counted
from evaluation.networks import LPIPS_BACKBONES, LoadedNetwork
from evaluation.report import preview_side, write_report
from evaluation.scoring import LIMITED, LeftOut, Scorer, Scores
from evaluation.setup import FEW_FOR_FID, load_networks_alike, set_up_pairs
from evaluation.sharing import score_together
from evaluation.summary import (
    LABELS,
    METRICS,
    Summary,
    summarise,
    table_lines,
    unmatched_line,
    write_csv,
    write_json,
)
from utils import distributed, errors
from utils.errors import SOME_LEFT_OUT, UserError, WorkError, tell, warn
from utils.memory import keep_freed_memory
from utils.metrics import GT_MEAN, PROTOCOLS
from utils.options import ArgumentParser, choose_device
from utils.script import exit_with

LPIPS_NET = "alex"
BOTH = "both"  # of PROTOCOLS
LIBRARIES = (
    *("torch", "torchvision", "numpy", "scipy"),
    *("scikit-image", "pillow", "imagecodecs", "tifffile", "lpips", "pytorch-fid"),
)


def main(args: argparse.Namespace) -> int:
    """Score a folder against another; returns the exit status."""
    # Setup pairs:
    device = distributed.join(choose_device(args.device))
    metrics = args.metrics or METRICS
    protocols = chosen_protocols(args.protocol, metrics)
    with distributed.together():
        check_arguments(args, protocols, metrics)
        matching = set_up_pairs(args) if distributed.is_main() else None
    pairs = distributed.broadcast(matching and matching.pairs)

    # Setup networks:
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # the same figures on every device
    networks, unavailable = load_networks_alike(args, protocols, metrics, device)

    # A thread that Ctrl-C leaves behind may still write into the folder while it is removed:
    previews = (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if args.report else nullcontext()
    )
    with previews as preview_folder:
        # Score:
        scorer = Scorer(
            device,
            protocols,
            metrics,
            {metric: loaded.network for metric, loaded in networks.items()},
            resize_to_gt=args.resize_to_gt,
            preview_folder=Path(preview_folder) if preview_folder else None,
            preview_side=preview_side(len(pairs)),
        )
        shown = None if errors.shows_progress() else True
        scoring = score_together(pairs, scorer)
        results = dict(tqdm(scoring, total=len(pairs), unit="pair", disable=shown))

        # Report:
        with distributed.together():
            status = None
            if distributed.is_main():
                in_order = [results[number] for number in range(len(pairs))]
                status = report(args, in_order, matching, networks, unavailable, scorer)
    return distributed.broadcast(status)


def report(
    args: argparse.Namespace,
    results: Sequence[Scores | LeftOut],
    matching: Matching,
    networks: Mapping[str, LoadedNetwork],
    unavailable: Mapping[str, str],
    scorer: Scorer,
) -> int:
    """Write the files that were asked for and print the table; returns the exit status.

    Args:
        args: of the script.
        results: of each pair, in their order.
        matching: the pairs, and the files without a partner.
        networks: metric -> network.
        unavailable: metric -> why there is none.
        scorer: tells why there are no previews.

    Raises:
        WorkError: too few pairs could be scored, or a file cannot be written.
    """
    scored: list[Scores] = []
    left_out: list[str] = []
    for result in results:
        if isinstance(result, LeftOut):
            left_out += result.reasons
        else:
            scored.append(result)
            left_out += result.faults
    for reason in left_out:
        warn(f"left out: {reason}")
    if not scored:
        raise WorkError("none of the pairs could be scored")
    if "fid" in (args.metrics or ()) and len(scored) < 2:
        raise WorkError(FEW_FOR_FID)

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
    if unmatched := unmatched_line(matching.leftovers):
        tell(f"{unmatched}; they are named above")
    return SOME_LEFT_OUT if left_out or unmatched else 0


def chosen_protocols(names: Sequence[str], metrics: Sequence[str]) -> tuple[str, ...]:
    """List the protocols that compare with ground truth, each once; none where NIQE is alone."""
    if set(metrics) == {"niqe"}:
        return ()
    protocols = (PROTOCOLS if name == BOTH else (name,) for name in names)
    return tuple(dict.fromkeys(name for several in protocols for name in several))


def check_arguments(
    args: argparse.Namespace, protocols: Sequence[str], metrics: Sequence[str]
) -> None:
    """Refuse options that could only fail, or do nothing.

    Raises:
        UserError: there is such an option.
    """
    if protocols and not args.gt_images_path:
        raise UserError(
            f"{', '.join(LABELS[metric] for metric in metrics if metric != 'niqe')} compare with "
            "ground truth; give --gt_images_path, or --metrics niqe alone"
        )
    for flag, given in (
        ("--protocol", args.protocol != [BOTH]),
        ("--resize_to_gt", args.resize_to_gt),
    ):
        if given and not protocols:
            raise UserError(f"{flag} does nothing where NIQE alone is computed; omit it")
    for metric in args.metrics or ():
        if metric in LIMITED and not set(LIMITED[metric]) & set(protocols):
            raise UserError(
                f"the {' and '.join(protocols)} protocol has no {LABELS[metric]}; use --protocol "
                f"{LIMITED[metric][0]} or {BOTH}"
            )
    if args.input_images_path and not args.report and "niqe" not in metrics:
        raise UserError("--input_images_path is only shown in the report; add --report FILE.html")
    for flag, given, metric in (
        ("--lpips_weights", args.lpips_weights is not None, "lpips"),
        ("--lpips_net", args.lpips_net != LPIPS_NET, "lpips"),
        ("--fid_weights", args.fid_weights is not None, "fid"),
        ("--niqe_parameters", args.niqe_parameters is not None, "niqe"),
    ):
        usable = metric == "niqe" or set(LIMITED[metric]) & set(protocols)
        computed = metric in metrics and usable
        if given and not computed:
            raise UserError(f"{flag} does nothing where {LABELS[metric]} is not computed; omit it")


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
    images = parser.add_argument_group(
        "images, paired by name; extension, case and Unicode form do not count"
    )
    images.add_argument(
        "--gt_images_path",
        metavar="FOLDER",
        help="ground truth (default: none, which only NIQE can do without)",
    )
    images.add_argument(
        "--enhanced_images_path", required=True, metavar="FOLDER", help="what is scored"
    )
    images.add_argument(
        "--input_images_path",
        metavar="FOLDER",
        help="untouched images, to see in the report and to compare NIQE with (default: none)",
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
        nargs="+",
        choices=[*PROTOCOLS, BOTH, GT_MEAN],
        default=[BOTH],
        metavar="PROTOCOL",
        help="standard: on RGB, LPIPS at native size, FID; released: as the RAVE authors' script; "
        f"both; gt_mean: each image first scaled to its ground truth's mean (default: {BOTH})",
    )
    scores.add_argument(
        "--metrics",
        nargs="+",
        choices=[*METRICS, "niqe"],
        metavar="METRIC",
        help=f"of {', '.join(METRICS)} and niqe, which is computed only where it is named; a "
        "network that is missing is then an error (default: all whose networks can be had)",
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
        "--niqe_parameters",
        metavar="FILE",
        help="BasicSR's niqe_pris_params.npz (default: torch's hub cache or a download)",
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
