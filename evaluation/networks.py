"""The networks that score images, LPIPS and pytorch-fid's Inception, and their weight files."""

from __future__ import annotations

import hashlib
import re
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path

import lpips
import numpy as np
import torch
from PIL import Image
from pytorch_fid import inception
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize, resize, to_tensor

from utils.checkpoint import load_weights, require_finite
from utils.errors import UserError

LPIPS_BACKBONES = {
    "alex": models.AlexNet_Weights.IMAGENET1K_V1.url,
    "vgg": models.VGG16_Weights.IMAGENET1K_V1.url,
    "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
}
REACH_SECONDS = 10  # that a server may take to answer

# What the released protocol shows LPIPS (docs/method.md 8).
LPIPS_SHORTER_SIDE = 1024
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class LoadedNetwork:
    """A network in evaluation mode and the file that its weights come from.

    Attributes:
        network: on its device, frozen.
        weights: the file.
        sha256: of the file, 64 hexadecimal digits.
    """

    network: nn.Module
    weights: Path
    sha256: str


def load_lpips(net: str, weights: str | Path | None, device: torch.device) -> LoadedNetwork:
    """Build LPIPS (Zhang et al., 2018): its own linear heads on an ImageNet backbone.

    Args:
        net: alex, vgg or squeeze.
        weights: torchvision's file for the backbone; None takes torch's hub cache or downloads.
        device: where it computes.

    Raises:
        UserError: the weights cannot be had, are not finite, or are another network's.
    """
    path = weight_file(weights, LPIPS_BACKBONES[net], f"LPIPS ({net})", "--lpips_weights")
    given = load_weights(path)
    require_finite(given, path, "--lpips_weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips still says `pretrained=` to torchvision
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # lpips cuts torchvision's `features` into slices, and keeps the layers' numbers.
    own = {re.sub(r"^slice\d+", "features", name): name for name in network.net.state_dict()}
    try:
        network.net.load_state_dict({own[name]: given[name] for name in own})
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} does not hold torchvision's weights of {net}") from error
    return _freeze(network, path, device)


def load_inception(weights: str | Path | None, device: torch.device) -> LoadedNetwork:
    """Build pytorch-fid's Inception, which gives 2048 features of an image.

    Args:
        weights: pytorch-fid's file; None takes torch's hub cache or downloads.
        device: where it computes.

    Raises:
        UserError: the weights cannot be had, are not finite, or are another network's.
    """
    path = weight_file(weights, inception.FID_WEIGHTS_URL, "FID", "--fid_weights")
    given = load_weights(path)
    require_finite(given, path, "--fid_weights")
    original = inception.load_state_dict_from_url
    # pytorch-fid builds its network only around a download: hand it the file's contents instead.
    inception.load_state_dict_from_url = lambda url, progress: given
    try:
        network = inception.InceptionV3()
    except RuntimeError as error:
        raise UserError(f"{path} does not hold pytorch-fid's Inception weights") from error
    finally:
        inception.load_state_dict_from_url = original
    return _freeze(network, path, device)


def _freeze(network: nn.Module, path: Path, device: torch.device) -> LoadedNetwork:
    network = network.eval().requires_grad_(False)
    network = network.to(device, memory_format=torch.channels_last)
    return LoadedNetwork(network, path, hashlib.sha256(path.read_bytes()).hexdigest())


def weight_file(given: str | Path | None, url: str, what: str, flag: str) -> Path:
    """Find a weight file: the given one, the one in torch's hub cache, or download it there.

    Args:
        given: a path, or None.
        url: where its makers publish it.
        what: the metric that needs it, for the error.
        flag: the option that names a file, for the error.

    Raises:
        UserError: it cannot be had; the text says which file goes where.
    """
    if given is not None:
        if not Path(given).is_file():
            raise UserError(f"no file at {given}; {flag} takes the file that {url} gives")
        return Path(given)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _download(url, cached)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{what} needs {cached.name}, which could not be downloaded ({reason}); fetch {url} "
            f"elsewhere and put it at {cached}, or name it with {flag}"
        ) from error
    return cached


def _download(url: str, path: Path) -> None:
    """Download through torch's hub, which checks the hash that is part of the file's name."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(REACH_SECONDS)
    try:
        prefix = torch.hub.HASH_REGEX.search(path.name)
        torch.hub.download_url_to_file(url, str(path), prefix and prefix.group(1))
    finally:
        socket.setdefaulttimeout(timeout)


def lpips_input(pixels: np.ndarray, protocol: str) -> Tensor:
    """Turn an image, (H, W, 3) uint8, into what LPIPS gets to see, (1, 3, any, any).

    The standard protocol keeps the size and shows [-1, 1], as LPIPS was fitted. The released one
    resizes the shorter side to 1024 (Pillow, bilinear) and shows ImageNet's mean and standard
    deviation instead (docs/method.md 8).
    """
    if protocol == "standard":
        return to_tensor(pixels)[None] * 2 - 1
    image = resize(Image.fromarray(pixels), LPIPS_SHORTER_SIDE)
    return normalize(to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)[None]


@torch.inference_mode()
def lpips_distance(
    network: nn.Module, gt: np.ndarray, enhanced: np.ndarray, protocol: str
) -> float:
    """Compute LPIPS of two images of one size, each (H, W, 3) uint8; 0 for equal ones."""
    device = next(network.parameters()).device
    sides = (lpips_input(pixels, protocol).to(device) for pixels in (gt, enhanced))
    return network(*sides).item()


@torch.inference_mode()
def inception_features(network: nn.Module, *images: np.ndarray) -> np.ndarray:
    """Compute the features, (N, 2048), of N images of one size, each (H, W, 3) uint8."""
    device = next(network.parameters()).device
    pixels = torch.stack([to_tensor(image) for image in images]).to(device)
    return network(pixels)[0].flatten(1).cpu().numpy()
