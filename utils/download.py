"""Files from the network: whether the Hugging Face cache has them, whether they can be fetched."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub

from utils.errors import UserError

REACH_SECONDS = 10  # huggingface_hub itself would retry for most of a minute
HUGGING_FACE = huggingface_hub.constants.ENDPOINT


def hub_cached(repository: str, files: Sequence[str]) -> Path | None:
    """Find the first of a repository's files that is in the Hugging Face cache, or None."""
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    return None


def download(fetch: Callable[[], str], url: str, what: str, remedy: str) -> Path:
    """Download a file, after asking its host once, briefly, whether it can be reached.

    Args:
        fetch: downloads the file and returns its path.
        url: of the file, or of the host that has it.
        what: the file in words, for the error.
        remedy: what else the user can do, for the error.

    Raises:
        UserError: the host cannot be reached, or the download fails.
    """
    _require_network(url, what, remedy)
    try:
        return Path(fetch())
    except Exception as error:  # each library on the way raises errors of its own
        raise UserError(f"could not download {what} ({error}); {remedy}") from error


def _require_network(url: str, what: str, remedy: str) -> None:
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer, though a refusal: the host is there
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{what} are not on this machine and {url} cannot be reached ({reason}); {remedy}"
        ) from error
