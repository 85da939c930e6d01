"""Files of tensors: safe loading, atomic saving, a cache, a fingerprint."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from utils import distributed
from utils.errors import UserError, warn
from utils.files import atomic_path, cache_folder, describe_content

PLAIN_TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
PLAIN_TYPES |= {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
PREFIX = "module."  # the released checkpoints' keys start with it (docs/method.md 1)
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")  # by DataParallel and torch.compile, in any order
WRAPPERS = ("params_ema", "params", "state_dict", "model")  # keys of others' files; averages first
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained_models"
DEFAULT_WEIGHTS = "rave_default.pth"
SUFFIXES = (".pth", ".safetensors")
MAPPED_FROM = 2**26  # bytes of a cached tensor that is left in its file


def save(contents: object, path: str | Path) -> None:
    """Save tensors and plain values atomically with `torch.save`.

    Raises:
        UserError: as `atomic_path`.
    """
    buffer = io.BytesIO()  # of a full disk torch itself would only say "unexpected pos"
    torch.save(contents, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: str | Path, *, own: bool = False, mapped: bool = False) -> object:
    """Load a file of tensors and plain values, or a .safetensors file; run no code in it.

    Args:
        path: the file.
        own: `save` wrote it, so that its sums hold; others may have written none.
        mapped: leave the numbers on disk until they are used, so that the file must stay there.

    Raises:
        UserError: the file is missing, is not a checkpoint, or would run code.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint at {path} that you may read; check the path")
    try:
        if content := describe_content(path):
            raise UserError(f"{path} is {content}")
        if path.suffix == ".safetensors":
            contents = safetensors.torch.load_file(path)
        else:
            if own:
                _require_intact(path)  # torch checks no sums
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        plain = _is_plain(contents)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors and plain values; it was not loaded, "
            "since such a file can run code. Ask its maker for a plain state dict"
        ) from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read; see to its permissions") from error
    except Exception as error:  # torch's reader raises many kinds for damaged files
        raise UserError(f"{path} is damaged or no checkpoint; fetch it again") from error
    if not plain:
        raise UserError(f"{path} holds sparse, complex or other tensors that no network here has")
    return contents


def _require_intact(path: Path) -> None:
    """Check the sums of all parts of a zip file, a little of it at a time."""
    with zipfile.ZipFile(path) as archive:
        if part := archive.testzip():
            raise zipfile.BadZipFile(part)


def _is_plain(contents: object) -> bool:
    """Whether all tensors in nested dicts and lists are strided, real and on the CPU."""
    if isinstance(contents, Tensor):
        strided = contents.layout is torch.strided and contents.device.type == "cpu"
        return strided and contents.dtype in PLAIN_TYPES
    if isinstance(contents, Mapping):
        return all(map(_is_plain, contents.values()))
    return not isinstance(contents, list | tuple) or all(map(_is_plain, contents))


def find_weights(name: str | Path | None) -> Path:
    """Find enhancer weights by their path, or by their bare name in `pretrained_models/`.

    Args:
        name: a file; or the name, with or without its suffix, of one in `pretrained_models/`; or
            None for the default there.

    Raises:
        UserError: there is no such file; the text lists what is there.
    """
    if name is None and not (PRETRAINED / DEFAULT_WEIGHTS).is_file():
        raise UserError(
            "no checkpoint given, and the default is missing; name one, or put it at "
            f"{PRETRAINED / DEFAULT_WEIGHTS}"
        )
    name = Path(PRETRAINED / DEFAULT_WEIGHTS if name is None else name)
    candidates = [name]
    if name.name == str(name):
        candidates += [PRETRAINED / name, *(PRETRAINED / f"{name}{suffix}" for suffix in SUFFIXES)]
    for path in candidates:
        if os.path.isfile(path):
            return path
    there = {path.stem for path in PRETRAINED.glob("*") if path.suffix in SUFFIXES}
    raise UserError(
        f"no checkpoint at {name}; give its path, or the name of one in {PRETRAINED} "
        f"({', '.join(sorted(there)) or 'nothing yet'}); `python -m utils.download NAME` fetches a "
        "published one"
    )


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Load a state dict, as it stands in the file or one level down, under its plain names.

    Args:
        path: the file. Its state dict may be wrapped as others do, {"params": ...} for instance
            (`WRAPPERS`), and its keys may have `module.` and `_orig_mod.` before them: those of the
            released files have `module.`.

    Raises:
        UserError: as `load`, or the file holds anything else than named tensors.
    """
    weights = load(path)
    if isinstance(weights, Mapping):
        inner = (weights[key] for key in WRAPPERS if isinstance(weights.get(key), Mapping))
        weights = next(inner, weights)
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise UserError(f"{path} is not a state dict (names and their tensors)")
    return {WRAPPED.sub("", key): value for key, value in weights.items()}


def restore(module: nn.Module, path: str | Path, what: str) -> None:
    """Load a file that `load_weights` understands into `module`.

    Args:
        module: receives the weights.
        path: the file.
        what: what the file should hold, for the error: "enhancer weights".

    Raises:
        UserError: as `load_weights`, or names or shapes are not those of `module`, or a number is
            not finite.
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
        [f"{key} is no tensor of finite numbers" for key in shared if not _is_real(weights[key])],
    )
    wrong = [
        min(kind) + (f" (and {len(kind) - 1} more)" if len(kind) > 1 else "")
        for kind in kinds
        if kind
    ]
    if wrong:
        raise UserError(f"{path} does not hold {what}: {', '.join(wrong)}")
    module.load_state_dict(weights)


def _is_real(values: Tensor) -> bool:
    return values.dtype.is_floating_point and is_finite(values)


def is_finite(values: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    return values.numel() == 0 or all(end.isfinite() for end in values.aminmax())  # NaN is an end


def require_finite(weights: Mapping[str, Tensor], source: object, flag: str) -> None:
    """Check the weights of a frozen network.

    Args:
        weights: by name.
        source: where they come from, for the error.
        flag: the option that names another file, for the error.

    Raises:
        UserError: a number is not finite.
    """
    wrong = [name for name, values in weights.items() if not is_finite(values)]
    if wrong:
        raise UserError(
            f"{source} holds numbers that are not finite ({len(wrong)} of {len(weights)} tensors, "
            f"such as {min(wrong)}); fetch the file again, or name another with {flag}"
        )


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Save a module's weights as `save_state_dict` does."""
    save_state_dict(module.state_dict(), path)


def save_state_dict(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Save a state dict atomically, in the format that the file's suffix names.

    Args:
        weights: by their plain names, on any device.
        path: a `.safetensors` file gets the plain names; any other is in the released format,
            every key with `module.` before it.

    Raises:
        UserError: as `atomic_path`.
    """
    weights = {key: value.detach().cpu() for key, value in weights.items()}
    if Path(path).suffix != ".safetensors":
        save({PREFIX + key: value for key, value in weights.items()}, path)
        return
    weights = {key: value.contiguous() for key, value in weights.items()}  # else it is refused
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))


def cached_tensor(key: str, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
    """Load a tensor from the cache, or compute and keep it.

    Of several processes of a run all compute it, and rank 0 reads and keeps it. A damaged file is
    replaced, and a cache folder that cannot be written is done without; standard error says so.

    Args:
        key: the file's name, which must name everything that the tensor depends on.
        shape: of the tensor.
        compute: called if there is no such file.

    Returns:
        The tensor, on the CPU; a large one from the cache stays in its file, which the system reads
        as it is used and forgets when memory is short.
    """
    path = cache_folder() / f"{key}.pt"
    tensor = None
    if distributed.is_main() and path.is_file():
        try:
            tensor = _load_tensor(path, shape)
        except (UserError, OSError) as error:
            warn(f"warning: {error}; computing it again")
    tensor = distributed.broadcast(tensor)
    if tensor is not None:
        return tensor
    tensor = compute().cpu()
    if not distributed.is_main():
        return tensor
    try:
        save(tensor, path)
    except (UserError, OSError, RuntimeError) as error:  # a read-only folder, a full disk
        warn(f"warning: not cached, it will be computed in every run: {error}")
    return tensor


def _load_tensor(path: Path, shape: tuple[int, ...]) -> Tensor:
    tensor = load(path, own=True, mapped=path.stat().st_size >= MAPPED_FROM)
    if not (isinstance(tensor, Tensor) and tensor.shape == shape and is_finite(tensor)):
        raise UserError(f"the cached {path} does not hold what its name says")
    return tensor


def fingerprint(state: Mapping[str, Tensor], *words: str) -> str:
    """Hash named tensors: SHA-256 over their names, types, shapes and bytes, in order of name.

    Args:
        state: the tensors.
        words: what else tells them apart, such as the layers that they belong to.

    Returns:
        64 hexadecimal digits, the same on every device and in every memory format.
    """
    digest = hashlib.sha256(" ".join(words).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_file(path: str | Path) -> str:
    """Hash the state dict in a file as `fingerprint` does, whether or not it has `module.`.

    Raises:
        UserError: as `load_weights`.
    """
    return fingerprint(load_weights(path))
