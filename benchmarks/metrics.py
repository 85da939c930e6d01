"""How fast pairs are scored: compute_metrics.py's way against one pair at a time in a plain loop.

    python -m benchmarks.metrics [--pairs 60]

Both compute PSNR, SSIM and LPIPS in both protocols, and FID, of the same made-up images of
600x400 with networks of random weights, and their figures are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import lpips
import numpy as np
import torch
from PIL import Image
from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3
from scipy.linalg import sqrtm
from torch import nn
from torch.nn.functional import interpolate
from torchvision import models
from torchvision.transforms.functional import normalize, resize, to_tensor

import compute_metrics
from utils.backbones import LPIPS_BACKBONES, load_inception, load_lpips
from utils.checkpoint import save
from utils.memory import keep_freed_memory
from utils.metrics import IMAGENET_MEAN, IMAGENET_STD, LPIPS_SHORTER_SIDE, PROTOCOLS, fidelity
from utils.options import choose_device
from utils.pairs import Pair
from utils.results import summarise
from utils.scoring import Networks, score_pairs

WIDTH, HEIGHT = 600, 400
WANTED = ("psnr", "ssim", "lpips", "fid")


def save_random_weights(folder: Path) -> tuple[Path, Path]:
    """Save an AlexNet and a FID Inception of random weights under the published names.

    Inception's batch norms are fitted to smooth noise, without which its features would vanish.

    Returns:
        The two files; the folder `checkpoints` of a torch hub folder is where libraries find them.
    """
    alex = folder / Path(LPIPS_BACKBONES["alex"]).name
    save(models.alexnet().state_dict(), alex)
    # torchvision's Inception has tensors of the same names and shapes as pytorch-fid's.
    network = models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
    with torch.no_grad():
        network.train()(interpolate(torch.rand(8, 3, 13, 13), (299, 299), mode="bicubic") * 2 - 1)
    save(network.state_dict(), folder / Path(FID_WEIGHTS_URL).name)
    return alex, folder / Path(FID_WEIGHTS_URL).name


def make_pairs(folder: Path, count: int) -> list[Pair]:
    """Write smooth random images and darker, noisier versions of them, as PNG files."""
    generator = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        coarse = generator.integers(0, 256, (13, 19, 3), dtype=np.uint8)
        gt = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 4, gt.shape)
        enhanced = np.clip(gt * generator.uniform(0.5, 0.9) + noise, 0, 255).astype(np.uint8)
        pair = Pair(str(number), folder / f"{number}_gt.png", folder / f"{number}_enhanced.png")
        Image.fromarray(gt).save(pair.gt)
        Image.fromarray(enhanced).save(pair.enhanced)
        pairs.append(pair)
    return pairs


def score_plainly(
    pairs: list[Pair], lpips_network: nn.Module, inception: nn.Module, device: torch.device
) -> dict[str, float]:
    """Score with the libraries, one image after the other."""
    values: dict[str, list[float]] = {}
    features: dict[str, list[np.ndarray]] = {"gt": [], "enhanced": []}
    for pair in pairs:
        gt, enhanced = (
            np.array(Image.open(path).convert("RGB")) for path in (pair.gt, pair.enhanced)
        )
        for protocol in PROTOCOLS:
            for metric, value in fidelity(gt, enhanced, protocol).items():
                values.setdefault(f"{protocol} {metric}", []).append(value)
            sides = [lpips_input(pixels, protocol).to(device) for pixels in (gt, enhanced)]
            with torch.no_grad():
                distance = lpips_network(*sides).item()
            values.setdefault(f"{protocol} lpips", []).append(distance)
        for name, pixels in (("gt", gt), ("enhanced", enhanced)):
            with torch.no_grad():
                feature = inception(to_tensor(pixels)[None].to(device))[0]
            features[name].append(feature.flatten(1).cpu().numpy())
    means = {name: float(np.mean(numbers)) for name, numbers in values.items()}
    return means | {"standard fid": plain_distance(*map(np.concatenate, features.values()))}


def plain_distance(first: np.ndarray, second: np.ndarray) -> float:
    """FID of (N, 2048) features by its formula, with SciPy's matrix root as in pytorch-fid."""
    shift = first.mean(axis=0) - second.mean(axis=0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    overlap = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
    return float(shift @ shift + sum(map(np.trace, covariances)) - 2 * overlap)


def lpips_input(pixels: np.ndarray, protocol: str) -> torch.Tensor:
    """What LPIPS gets to see of (H, W, 3) uint8 pixels: (1, 3, any, any)."""
    if protocol == "standard":
        return to_tensor(pixels)[None] * 2 - 1
    image = resize(Image.fromarray(pixels), LPIPS_SHORTER_SIDE)
    return normalize(to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)[None]


def score_together(
    pairs: list[Pair], lpips_network: nn.Module, inception: nn.Module, device: torch.device
) -> dict[str, float]:
    """Score as compute_metrics.py does."""
    keep_freed_memory()
    networks = Networks(device, lpips_network, inception)
    load = partial(
        compute_metrics.load_pair, protocols=PROTOCOLS, wanted=WANTED, resize=False, side=None
    )
    scored = list(score_pairs(pairs, load, networks))
    summary = summarise(scored, PROTOCOLS, WANTED, {}, networks)
    return {
        f"{protocol} {metric}": figure.value
        for protocol, figures in summary.items()
        for metric, figure in figures.items()
        if figure.value is not None
    }


def main(args: argparse.Namespace) -> None:
    """Time both ways in turn, and print their figures, times and ratio."""
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        torch.hub.set_dir(folder)
        (folder / "checkpoints").mkdir()
        save_random_weights(folder / "checkpoints")
        pairs = make_pairs(folder, args.pairs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips speaks to torchvision as to an old one
            plain = lpips.LPIPS(verbose=False).to(device), InceptionV3().eval().to(device)
        ours = load_lpips("alex", None, device).network, load_inception(None, device).network
        results = {}
        for name, score, networks in (
            ("plain loop", score_plainly, plain),
            ("together", score_together, ours),
        ):
            score(pairs[:2], *networks, device)  # warm up
            start, start_cpu = time.perf_counter(), time.process_time()
            figures = score(pairs, *networks, device)
            results[name] = (
                time.perf_counter() - start,
                time.process_time() - start_cpu,
                figures,
            )
    print(f"{args.pairs} pairs of {WIDTH}x{HEIGHT}, {torch.get_num_threads()} threads, {device}")
    (plain_wall, plain_cpu, expected), (wall, cpu, figures) = results.values()
    for key, value in expected.items():
        print(f"  {key:16} plain {value:.6f}, together {figures[key]:.6f}")
    for name, (seconds, cpu_seconds, _) in results.items():
        print(f"{name:10} {seconds:7.1f} s, of all cores {cpu_seconds:7.1f} s")
    print(f"{plain_wall / wall:.2f} times as fast, with 1/{plain_cpu / cpu:.2f} of the work")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
