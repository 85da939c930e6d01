"""Files from the network: whether the Hugging Face cache has them, whether they can be fetched.

    python -m utils.download rave_paired

fetches a checkpoint of the authors' from their own repository into pretrained_models/.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub.constants  # which the package by itself need not have

from utils import checkpoint
from utils.errors import UserError, tell
from utils.files import atomic_path
from utils.options import ArgumentParser
from utils.script import exit_with

# The authors' repositories as they were when the card's figures were computed
RAW = "https://raw.githubusercontent.com"
RAVE = "Atmyre/RAVE/3f0c651b0b4e953e1727e8333b1ca9cd3e57955c"
CLIP_LIT = "ZhexinLiang/CLIP-LIT/648cf29f1107c085b5b80ec94ef7c7f15bc15006"
OTHER_PLACES = {"clip_lit_original": f"{CLIP_LIT}/pretrained_models/enhancement_model.pth"}
SHA256 = {  # as in pretrained_models/README.md
    "clip_lit_latent_paired": "8bc9d8882837dbee3d266f4407478f63220174cd5838fbcadf2f4b2c070146ec",
    "clip_lit_latent_unpaired": "931966b5cbc3320d90a62c9ee7c820e0d291d7abfb85989b8296458e2354f94e",
    "clip_lit_original": "67aa1bdbac345842670e494b02953f299e5088bcb3f98a18bd60b06fef48b5c9",
    "clip_lit_paired": "5c3e14b3674d516190e77e54614476fe19ac91b9d8419c0c25533e573ff65d2d",
    "clip_lit_unpaired": "7b16e3815c1380138ada75ca5000f818db4462c27f4522a1de46023d96c09d0d",
    "rave_paired": "3d4e27eecbde9b55d2ef96afadc8cf4c2d0927fb8780ce1df6508d01a7ef811f",
    "rave_unpaired": "21fb43004af7de2e1782b5799fbaa91dc62ca2730134229323bceab53370742c",
    "rave_unpaired_shifted": "5bcf3feff7dcc4891be878721c2defba0305e343c6b3821f9e88a9950c06ae5e",
}
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


def main(args: argparse.Namespace) -> None:
    """Fetch a checkpoint into pretrained_models/, unless it is there."""
    path, fetched = fetch_checkpoint(args.name)
    tell(f"fetched {path}" if fetched else f"{path} is there already")


def fetch_checkpoint(name: str) -> tuple[Path, bool]:
    """Fetch a checkpoint of the authors' into pretrained_models/, whole and checked, or not at all.

    Args:
        name: one of `SHA256`.

    Returns:
        The file, and whether it was fetched: False if it was there.

    Raises:
        UserError: another file has its name; it cannot be fetched; or what came is not it.
    """
    path = checkpoint.PRETRAINED / f"{name}.pth"
    url = f"{RAW}/{OTHER_PLACES.get(name, f'{RAVE}/pretrained_models/{name}.pth')}"
    if path.exists():
        if _sha256(path.read_bytes()) != SHA256[name]:
            raise UserError(f"{path} is not the authors' file; move it away to fetch theirs")
        return path, False
    remedy = f"fetch {url} elsewhere and put it at {path}"
    _require_network(url, f"the weights {name}.pth", remedy)
    try:
        with urllib.request.urlopen(url, timeout=REACH_SECONDS) as response:
            contents = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"could not download {name}.pth ({error}); {remedy}") from error
    if (found := _sha256(contents)) != SHA256[name]:
        raise UserError(
            f"{url} gave another file than the card names (sha256 {found} instead of "
            f"{SHA256[name]}), which was not kept; {remedy}"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(contents)
    return path, True


def _sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SHA256), help="of the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
