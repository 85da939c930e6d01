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
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
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
from torchvision.transforms.functional import to_tensor

from data.pairs import Pair
from evaluation.networks import LPIPS_BACKBONES, load_inception, load_lpips, lpips_input
from evaluation.scoring import Scorer, Scores, score_pairs
from evaluation.summary import METRICS, summarise
from utils.checkpoint import save
from utils.memory import keep_freed_memory
from utils.metrics import PROTOCOLS, fidelity
from utils.options import choose_device, positive_int

WIDTH, HEIGHT = 600, 400
PAIRS_IN_TURN = 20


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
    folder.mkdir()
    generator = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        coarse = generator.integers(0, 256, (13, 19, 3), dtype=np.uint8)
        gt = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 4, gt.shape)
        enhanced = np.clip(gt * generator.uniform(0.5, 0.9) + noise, 0, 255).astype(np.uint8)
        pair = Pair(str(number), f"{folder}/{number}_gt.png", f"{folder}/{number}_enhanced.png")
        Image.fromarray(gt).save(pair.gt)
        Image.fromarray(enhanced).save(pair.enhanced)
        pairs.append(pair)
    return pairs


class PlainLoop:
    """Scores with the libraries, one image and one metric after the other."""

    def __init__(self, device: torch.device):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips speaks to torchvision as to an old one
            self.lpips = lpips.LPIPS(verbose=False).to(device)
        self.inception = InceptionV3().eval().to(device)
        self.device = device
        self.values: dict[str, list[float]] = defaultdict(list)
        self.features: dict[str, list[np.ndarray]] = {"gt": [], "enhanced": []}

    def score(self, pairs: list[Pair]) -> None:
        """Add pairs."""
        for pair in pairs:
            gt, enhanced = (
                np.array(Image.open(path).convert("RGB")) for path in (pair.gt, pair.enhanced)
            )
            for protocol in PROTOCOLS:
                for metric, value in fidelity(gt, enhanced, protocol).items():
                    self.values[f"{protocol} {metric}"].append(value)
                sides = [lpips_input(image, protocol).to(self.device) for image in (gt, enhanced)]
                with torch.no_grad():
                    self.values[f"{protocol} lpips"].append(self.lpips(*sides).item())
            for name, pixels in (("gt", gt), ("enhanced", enhanced)):
                with torch.no_grad():
                    feature = self.inception(to_tensor(pixels)[None].to(self.device))[0]
                self.features[name].append(feature.flatten(1).cpu().numpy())

    def figures(self) -> dict[str, float]:
        """Means of what was scored, and FID by its formula with SciPy's matrix root."""
        first, second = map(np.concatenate, self.features.values())
        shift = first.mean(axis=0) - second.mean(axis=0)
        covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        overlap = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
        fid = shift @ shift + sum(map(np.trace, covariances)) - 2 * overlap
        means = {name: float(np.mean(values)) for name, values in self.values.items()}
        return means | {"standard fid": float(fid)}


class Together:
    """Scores as compute_metrics.py does."""

    def __init__(self, device: torch.device):
        keep_freed_memory()
        networks = {
            "lpips": load_lpips("alex", None, device).network,
            "fid": load_inception(None, device).network,
        }
        self.scorer = Scorer(device, PROTOCOLS, METRICS, networks)
        self.scored: list[Scores] = []

    def score(self, pairs: list[Pair]) -> None:
        """Add pairs."""
        self.scored += score_pairs(pairs, self.scorer)

    def figures(self) -> dict[str, float]:
        """Means of what was scored, and FID."""
        return {
            f"{protocol} {metric}": estimate.value
            for protocol, estimates in summarise(self.scored, {}).items()
            for metric, estimate in estimates.items()
            if estimate.value is not None
        }


def start(way: type, folder: Path, device: torch.device) -> None:
    """Set up a process that scores one way, and warm it up."""
    global scorer
    torch.hub.set_dir(folder)
    way(device).score(make_pairs(folder / way.__name__, 2))
    scorer = way(device)


def timed(method: str, *arguments: object) -> tuple[float, float, object]:
    """Call a method of the process's scorer; returns seconds, CPU seconds and its result."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    result = getattr(scorer, method)(*arguments)
    return time.perf_counter() - begun, time.process_time() - begun_cpu, result


def main(args: argparse.Namespace) -> None:
    """Time both ways in turn, a few pairs at a time, and print figures, times and ratios."""
    ways = (PlainLoop, Together)
    scoring, distance, work = Counter(), Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        folder = Path(folder)
        save_random_weights(folder / "checkpoints")
        pairs = make_pairs(folder / "pairs", args.pairs)
        # A process for each, since the memory that one keeps would help the other.
        processes = {
            way: stack.enter_context(
                ProcessPoolExecutor(
                    max_workers=1,
                    mp_context=get_context("spawn"),
                    initializer=start,
                    initargs=(way, folder, choose_device(args.device)),
                )
            )
            for way in ways
        }
        # In turn, so that other load on the machine slows both alike.
        for begin in range(0, len(pairs), PAIRS_IN_TURN):
            for way, process in processes.items():
                some = pairs[begin : begin + PAIRS_IN_TURN]
                seconds, cpu_seconds, _ = process.submit(timed, "score", some).result()
                scoring[way] += seconds
                work[way] += cpu_seconds
        figures = {}
        for way, process in processes.items():
            distance[way], cpu_seconds, figures[way] = process.submit(timed, "figures").result()
            work[way] += cpu_seconds

    print(
        f"{args.pairs} pairs of {WIDTH}x{HEIGHT}, {torch.get_num_threads()} threads, {args.device}"
    )
    for key, value in figures[PlainLoop].items():
        print(f"  {key:14} plain loop {value:.6f}, together {figures[Together][key]:.6f}")
    for way in ways:
        print(
            f"{way.__name__:9} {scoring[way]:6.1f} s and {distance[way]:.1f} s for FID's distance; "
            f"{work[way]:.1f} s of CPU time"
        )
    for what, times in (("", scoring + distance), (" without FID's distance", scoring)):
        print(f"{times[PlainLoop] / times[Together]:.2f} times as fast{what}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=positive_int, default=60, help="how many (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
