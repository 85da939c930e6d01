"""What scores images, LPIPS, pytorch-fid's Inception and NIQE, and the files of their weights.

torchvision takes seconds to import: LPIPS and Inception, which alone need it, import it when used.
"""

from __future__ import annotations

import hashlib
import re
import socket
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from evaluation.niqe import FEATURES, RADIUS, SIGMA, Pristine
from utils.checkpoint import load_weights, require_finite
from utils.download import RAW
from utils.errors import UserError, brief

TORCHVISION = "https://download.pytorch.org/models"
LPIPS_BACKBONES = {  # torchvision's IMAGENET1K_V1 weights of AlexNet, VGG16 and SqueezeNet 1.1
    "alex": f"{TORCHVISION}/alexnet-owt-7be5be79.pth",
    "vgg": f"{TORCHVISION}/vgg16-397923af.pth",
    "squeeze": f"{TORCHVISION}/squeezenet1_1-b8a52dc0.pth",
}
BASICSR = "XPixelGroup/BasicSR/8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a"
NIQE_PARAMETERS = f"{RAW}/{BASICSR}/basicsr/metrics/niqe_pris_params.npz"
NIQE_SHA256 = "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296"
REACH_SECONDS = 10  # that a server may take to answer

# What the released protocol shows LPIPS (docs/method.md 8).
LPIPS_SHORTER_SIDE = 1024
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class LoadedNetwork:
    """A network in evaluation mode, or what NIQE compares with, and the file that it comes from.

    Attributes:
        network: on its device, frozen.
        weights: the file.
        sha256: of the file, 64 hexadecimal digits.
    """

    network: nn.Module | Pristine
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
    import lpips

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
    from pytorch_fid import inception

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


def load_niqe(parameters: str | Path | None) -> LoadedNetwork:
    """Load what NIQE compares with: the parameters of pristine photographs.

    Args:
        parameters: BasicSR's file; None takes torch's hub cache or downloads.

    Raises:
        UserError: the file cannot be had, or does not hold such parameters.
    """
    path = weight_file(parameters, NIQE_PARAMETERS, "NIQE", "--niqe_parameters", NIQE_SHA256)
    shapes = {
        "mu_pris_param": (1, FEATURES),
        "cov_pris_param": (FEATURES, FEATURES),
        "gaussian_window": (2 * RADIUS + 1, 2 * RADIUS + 1),
    }
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in shapes}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is not {shape} finite numbers")
        mean, covariance, window = arrays.values()
        impulse = np.zeros(window.shape)
        impulse[RADIUS, RADIUS] = 1
        if np.abs(window - gaussian_filter(impulse, SIGMA, radius=RADIUS)).max() > 1e-6:
            raise ValueError("gaussian_window is another")
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} does not hold NIQE's parameters ({brief(error)}); --niqe_parameters takes the "
            f"file that {NIQE_PARAMETERS} gives"
        ) from error
    return LoadedNetwork(Pristine(mean[0], covariance), path, _sha256(path))


def _freeze(network: nn.Module, path: Path, device: torch.device) -> LoadedNetwork:
    network = network.eval().requires_grad_(False)
    network = network.to(device, memory_format=torch.channels_last)
    return LoadedNetwork(network, path, _sha256(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weight_file(
    given: str | Path | None, url: str, what: str, flag: str, sha256: str | None = None
) -> Path:
    """Find a weight file: the given one, the one in torch's hub cache, or download it there.

    Args:
        given: a path, or None.
        url: where its makers publish it.
        what: the metric that needs it, for the error.
        flag: the option that names a file, for the error.
        sha256: of the file, where its name has no part of it.

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
        _download(url, cached, sha256)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{what} needs {cached.name}, which could not be downloaded ({reason}); fetch {url} "
            f"elsewhere and put it at {cached}, or name it with {flag}"
        ) from error
    return cached


def _download(url: str, path: Path, sha256: str | None) -> None:
    """Download through torch's hub, which checks the hash, or what the file's name has of it."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(REACH_SECONDS)
    try:
        named = torch.hub.HASH_REGEX.search(path.name)
        torch.hub.download_url_to_file(url, str(path), sha256 or (named and named.group(1)))
    finally:
        socket.setdefaulttimeout(timeout)


def lpips_input(pixels: np.ndarray, protocol: str) -> Tensor:
    """Turn an image, (H, W, 3) uint8, into what LPIPS gets to see, (1, 3, any, any).

    The standard protocol keeps the size and shows [-1, 1], as LPIPS was fitted. The released one
    resizes the shorter side to 1024 (Pillow, bilinear) and shows ImageNet's mean and standard
    deviation instead (docs/method.md 8).
    """
    from torchvision.transforms.functional import normalize, resize, to_tensor

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
    from torchvision.transforms.functional import to_tensor

    device = next(network.parameters()).device
    pixels = torch.stack([to_tensor(image) for image in images]).to(device)
    return network(pixels)[0].flatten(1).cpu().numpy()
