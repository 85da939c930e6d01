"""`last.pt`: what a run goes on from, checked before any work begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from models.encoders import Encoder
from training.schedule import LEVELS_KEPT, REFINEMENT, Schedule
from utils import checkpoint, distributed
from utils.errors import UserError
from utils.files import atomic_path

LAYOUT = 4  # of last.pt
WITH_PHOTOGRAPHS = 3  # the layout before, which had the photographs themselves in its record
PHOTOGRAPHS = "photographs.json"  # beside it, since many of them would make every saving slow
PARTS = ("layout", "record", "schedule", "learners", "constants")
USE = "its weights in snapshots_model serve as --unet_pretrain_dir of a new run"

T = TypeVar("T")


def read_state(path: Path) -> dict:
    """Load a saved state: a dict with the keys `PARTS`, of which only the layout is checked yet.

    Raises:
        UserError: the file is no saved state, or one of another version of this code, or the list
            of photographs is not beside it.
    """
    state = checkpoint.load(path, own=True)
    layout = state.get("layout") if isinstance(state, dict) else None
    if type(layout) is not int:
        raise damaged(path, "it is not the saved state of a run")
    if layout not in (WITH_PHOTOGRAPHS, LAYOUT):
        raise UserError(
            f"{path} was saved by another version of this code, which alone can go on with it; "
            + USE
        )
    if missing := [part for part in PARTS if part not in state]:
        raise damaged(path, f"{missing[0]} is missing")
    if layout == LAYOUT and isinstance(state["record"], dict):
        sha256 = state["record"].get("photographs")
        state["record"]["photographs"] = _read_photographs(path, sha256)
    return state


def write_photographs(photographs: dict[str, dict[str, int]], folder: Path) -> str:
    """Write what `Record` has of a run's photographs to its folder; return the file's SHA-256.

    Raises:
        UserError: as `atomic_path`.
    """
    text = json.dumps(photographs).encode()
    if distributed.is_main():
        with atomic_path(folder / PHOTOGRAPHS) as temporary:
            temporary.write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def _read_photographs(last: Path, sha256: object) -> dict[str, dict[str, int]]:
    """Read what `write_photographs` wrote beside a saved state."""
    file = last.with_name(PHOTOGRAPHS)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise damaged(last, f"{file} cannot be read ({error.strerror})") from error
    if hashlib.sha256(text).hexdigest() != sha256:
        raise damaged(last, f"{file} is not the list of photographs that belongs to it")
    return json.loads(text)


def damaged(path: Path, reason: object) -> UserError:
    """Make the error for a saved state that cannot be used."""
    return UserError(f"cannot go on from {path}: {reason}; {USE}")


def rebuild(kind: type[T], saved: object, where: str) -> T:
    """Make a dataclass of a saved dict of its fields, whose type hints say what is right.

    Raises:
        ValueError: other keys or other types; the text starts with `where`.
    """
    hints = get_type_hints(kind)
    if type(saved) is not dict or saved.keys() != hints.keys():
        raise ValueError(f"{where} does not have the entries {', '.join(hints)}")
    for name, hint in hints.items():
        if not _is_of(saved[name], hint):
            raise ValueError(f"{where}.{name} is not what it should be")
    return kind(**saved)


def _is_of(value: object, hint: object) -> bool:
    """Whether a value is of a type such as `dict[str, int | None]`; NaN is of none."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_is_of(value, one) for one in inner)
    if origin is list:
        return type(value) is list and all(_is_of(item, inner[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(
            _is_of(key, inner[0]) and _is_of(item, inner[1]) for key, item in value.items()
        )
    if hint is NoneType:
        return value is None
    return type(value) is hint and value == value


def require_like(value: object, like: object, where: str) -> None:
    """Compare saved tensors with an example: tensors, None, and dicts of them.

    Args:
        value: what was saved.
        like: has the right keys, shapes and types.
        where: names the value, for the error.

    Raises:
        ValueError: keys, shapes or types differ, or a number is not finite.
    """
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping) or value.keys() != like.keys():
            raise ValueError(f"{where} does not have the entries that it should have")
        for key in like:
            require_like(value[key], like[key], f"{where}.{key}")
    elif isinstance(like, Tensor):
        if not isinstance(value, Tensor) or (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{where} is not {like.dtype} of shape {tuple(like.shape)}")
        if not checkpoint.is_finite(value):
            raise ValueError(f"{where} is not finite")
    elif value is not like:
        raise ValueError(f"{where} should be {like}")


def rounds_like(schedule: Schedule, weights: dict[str, Tensor]) -> dict:
    """An example of CLIP-LIT's constants, to which rounds are added at their refinements.

    Args:
        schedule: where the run stands.
        weights: an enhancer's.
    """
    last = schedule.round - (schedule.stage != REFINEMENT)
    rounds = range(max(1, last - LEVELS_KEPT + 1), last + 1)
    return {"rounds": dict.fromkeys(rounds, weights)} if rounds else {}


@torch.no_grad()
def blank_vector(encoder: Encoder) -> dict[str, Tensor]:
    """Make examples of RAVE's constants, to compare the saved ones with: only shapes count."""
    r = encoder.embed(encoder.mean.new_zeros(1, 3, 1, 1))[0].cpu()  # (D,) or (cells, D)
    return {"r": r, "t": r.sum(dim=-1)}
