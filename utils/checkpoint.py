"""Files of weights: safe loading, atomic saving."""

import io
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError

PREFIX = "module."  # the released checkpoints' keys start with it (method.md, 1)
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained_models"
DEFAULT_WEIGHTS = "rave_default.pth"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yield a temporary path beside it, rename it at the end.

    Args:
        path: the final name; its folder is made if it is missing.

    Yields:
        A path in the same folder with the same suffix; it is removed if the block raises.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent
        )
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(contents: object, path: str | Path) -> None:
    """Save tensors and plain values atomically with `torch.save`.

    Raises:
        UserError: as `atomic_path`; of a full disk torch itself would only say "unexpected pos".
    """
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: str | Path) -> object:
    """Load a file of tensors and plain values onto the CPU, running no code of its own.

    Raises:
        UserError: the file is missing, is not a checkpoint, or would run code.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint at {path} that you may read; check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors and plain values; it was not loaded, "
            "since such a file can run code. Ask its maker for a plain state dict"
        ) from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read; see to its permissions") from error
    except Exception as error:  # whatever damage makes torch's reader stumble over
        raise UserError(
            f"{path} is not a whole torch checkpoint ({type(error).__name__}: {error}); fetch it "
            "again"
        ) from error


def find_weights(name: str | Path | None) -> Path:
    """Find enhancer weights by their path, or by their bare name in `pretrained_models/`.

    Args:
        name: a file; or the name, with or without `.pth`, of one in `pretrained_models/`; or None
            for the default there.

    Raises:
        UserError: there is no such file; the text lists what is there.
    """
    if name is None and not (PRETRAINED / DEFAULT_WEIGHTS).is_file():
        raise UserError(
            "no checkpoint given; name one with --unet_pretrain_dir, or put it at "
            f"{PRETRAINED / DEFAULT_WEIGHTS}, the default"
        )
    name = Path(PRETRAINED / DEFAULT_WEIGHTS if name is None else name)
    candidates = [name]
    if name.name == str(name):
        candidates += [PRETRAINED / name, PRETRAINED / f"{name}.pth"]
    for path in candidates:
        if os.path.isfile(path):
            return path
    there = ", ".join(sorted(path.stem for path in PRETRAINED.glob("*.pth"))) or "nothing yet"
    raise UserError(
        f"no checkpoint at {name}; give its path, or the name of one in {PRETRAINED} ({there})"
    )


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Load a state dict; keys lose the `module.` prefix of the released files if they have it.

    Raises:
        UserError: as `load`, or if the file holds anything else than named tensors.
    """
    weights = load(path)
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise UserError(f"{path} is not a state dict (names and their tensors)")
    return {key.removeprefix(PREFIX): value for key, value in weights.items()}


def restore(module: nn.Module, path: str | Path, what: str) -> None:
    """Load a state dict, with or without `module.`, into `module`.

    Args:
        module: receives the weights.
        path: the file.
        what: what the file should hold, for the error: "enhancer weights".

    Raises:
        UserError: as `load_weights`, or if names or shapes are not those of `module`, or if its
            numbers are not finite ones.
    """
    weights = load_weights(path)
    own = module.state_dict()
    shared = own.keys() & weights.keys()
    kinds = (
        [f"{key} is missing" for key in own.keys() - shared],
        [f"{key} is unknown" for key in weights.keys() - shared],
        [
            f"{key} has shape {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
            for key in shared
            if own[key].shape != weights[key].shape
        ],
        [f"{key} is no tensor of finite numbers" for key in shared if not _is_finite(weights[key])],
    )
    wrong = [
        min(kind) + (f" (and {len(kind) - 1} more)" if len(kind) > 1 else "")
        for kind in kinds
        if kind
    ]
    if wrong:
        raise UserError(f"{path} does not hold {what}: {', '.join(wrong)}")
    module.load_state_dict(weights)


def _is_finite(values: Tensor) -> bool:
    """Whether a tensor holds plain floating-point numbers, all finite."""
    plain = values.layout is torch.strided and values.device.type == "cpu"
    return plain and values.dtype.is_floating_point and bool(values.isfinite().all())


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Save a module's state dict atomically in the released format, every key with `module.`."""
    save({PREFIX + key: value.detach().cpu() for key, value in module.state_dict().items()}, path)
