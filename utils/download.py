"""Weight files of frozen encoders: where they lie, whether they can be fetched, what they hold."""

from __future__ import annotations

import difflib
import hashlib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import huggingface_hub
import open_clip
import torch
from torch import Tensor

from utils.errors import UserError

OPENAI_CACHE = Path("~/.cache/clip")  # where OpenAI's own clip package keeps its files
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
REACH_SECONDS = 10  # huggingface_hub itself would retry for most of a minute


def open_clip_file(name: str, tag: str, flag: str) -> Path:
    """Find, or download, the weights that open_clip knows as `tag` of the model `name`.

    Args:
        name: an open_clip model with such a tag, for instance "ViT-B-32".
        tag: for instance "openai".
        flag: the script's flag that takes a local file, for the error.

    Returns:
        A file: OpenAI's own in ~/.cache/clip, or one of the Hugging Face cache.

    Raises:
        UserError: nothing is cached and nothing can be fetched.
    """
    config = open_clip.get_pretrained_cfg(name, tag)
    url, (repository, _, file) = config.get("url", ""), config.get("hf_hub", "").rpartition("/")
    openai_file = OPENAI_CACHE.expanduser() / Path(url).name
    if tag == "openai" and openai_file.is_file():
        return openai_file
    cached = _hub_cached(repository, (file,) if file else HUB_NAMES)
    if cached:
        return cached
    what = f"the {tag} weights of {name}"
    if tag == "openai":
        remedy = f"fetch {url} elsewhere and put it at {openai_file}, or name it with {flag}"
    else:
        source = f"{file or HUB_NAMES[0]} of huggingface.co/{repository}" if repository else url
        remedy = f"fetch {source} elsewhere and name the file with {flag}"
    _require_network(huggingface_hub.constants.ENDPOINT if repository else url, what, remedy)
    try:
        return Path(open_clip.download_pretrained(config))
    except Exception as error:  # whatever the download's layers raise, the remedy is the same
        raise UserError(f"could not download {what} ({error}); {remedy}") from error


def timm_file(name: str, config: Mapping[str, object], flag: str) -> Path:
    """Find, or download, a timm model's own pretrained weights.

    Args:
        name: the model, for the error.
        config: its `pretrained_cfg`.
        flag: the script's flag that takes a local file, for the error.

    Raises:
        UserError: the model has no weights, or none are cached and none can be fetched.
    """
    repository, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise UserError(
            f"timm has no pretrained weights for {name}; name a file of weights with {flag}, "
            "or choose another model"
        )
    cached = _hub_cached(repository, (file, "pytorch_model.bin"))
    if cached:
        return cached
    what = f"the weights of timm/{name}"
    remedy = f"fetch {file} of huggingface.co/{repository} elsewhere and name it with {flag}"
    _require_network(huggingface_hub.constants.ENDPOINT, what, remedy)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # as above
        raise UserError(f"could not download {what} ({error}); {remedy}") from error


def _hub_cached(repository: str, files: Sequence[str]) -> Path | None:
    """The first of a repository's files that the Hugging Face cache already has."""
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(repository, file) if repository else None
        if isinstance(cached, str):
            return Path(cached)
    return None


def _require_network(url: str, what: str, remedy: str) -> None:
    """Ask the host of `url` once, briefly, so that being offline is known at once.

    Raises:
        UserError: it cannot be reached.
    """
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answered, if only to say that it does not like the question
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{what} are not on this machine and {url} cannot be reached ({reason}); {remedy}"
        ) from error


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive, as OpenAI's published CLIP files are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def similar(name: str, names: Sequence[str]) -> str:
    """End an error about an unknown name: "did you mean RN101, RN50?" or nothing."""
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash named tensors: the SHA-256 over their names, types, shapes and bytes, in order of name.

    Returns:
        64 hexadecimal digits, the same on every device and in every memory format.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
