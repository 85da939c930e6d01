"""Fréchet Inception distance: running statistics of features, and the distance between two.

pytorch-fid gives the network (see backbones.py). Its distance calls `scipy.linalg.sqrtm` with an
argument that SciPy 1.18 has removed, and takes the root of a singular product for fewer images
than features; the distance here does neither.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

FEATURES = 2048  # of Inception's last pooling, pool3
INCEPTION_SIZE = 299  # pixels, both sides
COMPARABLE = 2048  # images: with fewer than features, covariances are singular and the FID biased


class FeatureStatistics:
    """Mean and covariance of feature vectors, in memory that does not grow with their number.

    The covariance is kept as a factor: `root.T @ root`, `root` having at most as many rows as
    there are features. That is exact for few images and never squares what it later takes the
    root of.

    Attributes:
        count: vectors seen.
        mean: (D,) float64.
    """

    def __init__(self, dimensions: int = FEATURES):
        self.count = 0
        self.mean = np.zeros(dimensions)
        self._rows: list[np.ndarray] = []  # stacked, their product with themselves is the scatter

    def add(self, features: np.ndarray) -> None:
        """Take in (N, D) more vectors (the parallel update of Chan, Golub and LeVeque, 1979)."""
        features = np.asarray(features, dtype=np.float64)
        added, total = len(features), self.count + len(features)
        shift = features.mean(axis=0) - self.mean
        self._rows.append(features - features.mean(axis=0))
        self._rows.append(np.sqrt(self.count * added / total) * shift[None])
        self.mean += shift * added / total
        self.count = total
        if sum(map(len, self._rows)) > 2 * len(self.mean):
            self._rows = [self._triangle()]

    def root(self) -> np.ndarray:
        """A matrix with `root.T @ root` the covariance (normalised by count - 1); (rows <= D, D).

        Raises:
            ValueError: fewer than two vectors have no covariance.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least two vectors")
        self._rows = [self._triangle()]
        return self._rows[0] / np.sqrt(self.count - 1)

    def _triangle(self) -> np.ndarray:
        """The rows, reduced by QR to at most D of them with the same product."""
        rows = np.concatenate(self._rows)
        return np.linalg.qr(rows, mode="r") if len(rows) > len(self.mean) else rows


def frechet_distance(
    mean1: np.ndarray, root1: np.ndarray, mean2: np.ndarray, root2: np.ndarray
) -> float:
    """Fréchet (2-Wasserstein) distance, squared, of two normal distributions.

    `|mean1 - mean2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)` with `C = root.T @ root`. The last
    trace is the sum of the roots of the eigenvalues of the symmetric matrix `root1 C2 root1.T`,
    and those are the singular values of `root1 root2.T`: no matrix root, no complex numbers, and
    nothing to go wrong where a covariance is singular.

    Args:
        mean1: (D,).
        root1: (any, D).
        mean2: (D,).
        root2: (any, D).

    Returns:
        The distance, at least 0 (Heusel et al., 2017, eq. 6).
    """
    shift = mean1 - mean2
    overlap = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    distance = shift @ shift + np.square(root1).sum() + np.square(root2).sum() - 2 * overlap
    return max(0.0, float(distance))


def fid(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """FID of two sets of features of at least two images each."""
    return frechet_distance(first.mean, first.root(), second.mean, second.root())


def inception_pixels(*images: np.ndarray) -> Tensor:
    """Resize N images (any, any, 3) uint8 as pytorch-fid does: (N, 3, 299, 299) in [0, 1]."""
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    pixels = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]
    return torch.cat(
        [interpolate(one, size, mode="bilinear", align_corners=False) for one in pixels]
    )


def inception_features(network: nn.Module, images: Tensor) -> np.ndarray:
    """Features (N, 2048) of images (N, 3, 299, 299) in [0, 1], by pytorch-fid's Inception."""
    device = next(network.parameters()).device
    images = images.to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        return network(images)[0].flatten(1).cpu().numpy()
