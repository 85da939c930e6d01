"""Results that take long and depend on nothing but an encoder's weights, kept between runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from utils import checkpoint
from utils.errors import UserError


def cache_folder() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/rave, or ~/.cache/rave."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "rave"


def cached_tensor(key: str, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
    """Load a tensor from the cache, or compute and keep it.

    A damaged file is computed anew, and a cache that cannot be written does without; both are
    said on standard error.

    Args:
        key: the file's name, which must say all that the tensor depends on.
        shape: what the tensor must have.
        compute: called if there is no such file.

    Returns:
        The tensor, on the CPU.
    """
    path = cache_folder() / f"{key}.pt"
    if path.is_file():
        try:
            return _load(path, shape)
        except UserError as error:
            print(f"warning: {error}; computing it again", file=sys.stderr)
    tensor = compute().cpu()
    try:
        checkpoint.save(tensor, path)
    except (UserError, OSError, RuntimeError) as error:  # read-only, or full
        print(f"warning: not cached, it will be computed in every run: {error}", file=sys.stderr)
    return tensor


def _load(path: Path, shape: tuple[int, ...]) -> Tensor:
    tensor = checkpoint.load(path)
    if not (isinstance(tensor, Tensor) and tensor.shape == shape and tensor.isfinite().all()):
        raise UserError(f"the cached {path} does not hold what its name says")
    return tensor
