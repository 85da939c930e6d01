"""Which photographs belong together by name: the one rule of scoring and of training in pairs."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError, printable

NUMBERED = re.compile(r"(.+)\((\d+)\)")
NAMED = 10  # files that an error lists; more would hide the sentence


class Pair(NamedTuple):
    """The versions of an image; text, since folders may have 200,000 of them.

    Attributes:
        name: the ground truth's path below its folder, without extension; else the input's, or the
            enhanced image's own.
        gt: the ground truth, if there is one; in training the well-lit photograph.
        enhanced: what is scored against it; in training the backlit photograph.
        input: the untouched image, if there is one.
    """

    name: str
    gt: str | None
    enhanced: str
    input: str | None = None


@dataclass
class Matching:
    """Pairs, and what has no partner.

    Attributes:
        pairs: in the order of the ground truths.
        leftovers: kind -> files. "gt" and "enhanced" have no partner on the other side;
            "set_aside" have names like `0152(2)`, which the released rule leaves out; "input" are
            untouched images that belong to no pair; "without_input" are ground truths of pairs
            that have no input, where inputs were given.
    """

    pairs: list[Pair]
    leftovers: dict[str, list[str]]


def match_images(
    gt: Sequence[str],
    enhanced: Sequence[str],
    gt_root: Path,
    enhanced_root: Path,
) -> Matching:
    """Pair images by their paths below the two roots: extension, case, Unicode form aside.

    An enhanced `0152(1)` without a ground truth of exactly that name stands for `0152`, and
    `0152(2)` and so on are set aside, as the released script does (docs/method.md 8).

    Args:
        gt: at least one ground truth.
        enhanced: at least one enhanced image.
        gt_root: the folder that `gt` are below, or the only one of them.
        enhanced_root: likewise.

    Raises:
        UserError: an image has several candidates on a side, or there is no pair at all.
    """
    # Tuples of candidates, since the collector of garbage would go through 400,000 lists:
    gt_by_key, enhanced_by_key, names = defaultdict(tuple), defaultdict(tuple), {}
    set_aside = []
    for path, name in zip(gt, _names(gt, gt_root), strict=True):
        gt_by_key[key := name_key(name)] += (path,)
        names[key] = name
    for path, name in zip(enhanced, _names(enhanced, enhanced_root), strict=True):
        key = name_key(name)
        if key not in gt_by_key:
            numbered = NUMBERED.fullmatch(key)
            if numbered and numbered[1] in gt_by_key:
                if numbered[2] != "1":
                    set_aside.append(path)
                    continue
                key = numbered[1]
        enhanced_by_key[key] += (path,)
    shared = [key for key in gt_by_key if key in enhanced_by_key]
    sides = gt_by_key, enhanced_by_key
    _refuse_doubles([side[key] for side in sides for key in shared if len(side[key]) > 1])
    if not shared:
        raise UserError(
            f"no image of {enhanced_root} belongs to one of {gt_root}: names must agree but for "
            f"extension, case and Unicode form, and {printable(os.path.basename(enhanced[0]))} or "
            f"{printable(os.path.basename(gt[0]))} has no partner"
        )
    pairs = [Pair(names[key], gt_by_key[key][0], enhanced_by_key[key][0]) for key in shared]
    gt_only, enhanced_only = (
        [path for key, paths in ours.items() if key not in theirs for path in paths]
        for ours, theirs in ((gt_by_key, enhanced_by_key), (enhanced_by_key, gt_by_key))
    )
    leftovers = {"gt": gt_only, "enhanced": enhanced_only, "set_aside": set_aside}
    return Matching(pairs, leftovers | {"input": [], "without_input": []})


def single_images(paths: Sequence[str], root: Path) -> Matching:
    """Make a pair of each enhanced image below `root` alone, where there is nothing else."""
    names = _names(paths, root)
    return Matching([Pair(name, None, path) for name, path in zip(names, paths, strict=True)], {})


def _names(paths: Sequence[str], root: Path) -> list[str]:
    """Paths below a folder without extension, "/" between folders; `root` may be the only one."""
    folder = os.path.dirname(root) if os.path.isfile(root) else root
    start = len(os.path.join(folder, ""))
    return [os.path.splitext(path)[0][start:].replace(os.sep, "/") for path in paths]


def name_key(name: str) -> str:
    """Reduce a name without extension to what versions of an image share, however it is coded.

    Unicode's canonical caseless match (The Unicode Standard, definition D145).
    """
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _refuse_doubles(doubles: Sequence[Sequence[str]]) -> None:
    if doubles:
        told = abridged([" and ".join(paths) for paths in doubles])
        raise UserError(f"several candidates for one image: {told}; move all but one elsewhere")


def abridged(names: Sequence[object], limit: int = NAMED) -> str:
    """List up to `limit` names, escaped for the terminal: "a, b and 3 more"."""
    text = ", ".join(printable(str(name)) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def counted(count: int, noun: str) -> str:
    """Read as "1 pair" or "2 pairs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
