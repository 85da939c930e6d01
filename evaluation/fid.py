"""Fréchet Inception distance between two sets of features.

pytorch-fid gives the network (see networks.py). Its own distance calls `scipy.linalg.sqrtm` with an
argument that SciPy 1.18 has removed, and takes the root of a singular product where there are fewer
images than features; the distance here does neither.
"""

from __future__ import annotations

import numpy as np


def fid(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the FID of two sets of features, (N, D) and (M, D).

    Raises:
        ValueError: a set has fewer than two features.
    """
    return frechet_distance(*mean_and_root(first), *mean_and_root(second))


def mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean of features (N, D), and a root of their covariance.

    Returns:
        The mean, (D,), and a matrix (at most D, D) with `root.T @ root` the covariance, normalised
        by N - 1; both float64. Such a root is exact, and needs no covariance (D, D) where N is
        small.

    Raises:
        ValueError: N is below 2.
    """
    if len(features) < 2:
        raise ValueError("a covariance needs at least two features")
    features = np.asarray(features, dtype=np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:  # R of the QR decomposition has the same product in fewer rows
        root = np.linalg.qr(root, mode="r")
    return mean, root


def frechet_distance(
    mean1: np.ndarray, root1: np.ndarray, mean2: np.ndarray, root2: np.ndarray
) -> float:
    """Compute the squared Fréchet (2-Wasserstein) distance of two normal distributions.

    `|mean1 - mean2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)` with `C = root.T @ root`. The last
    trace sums the square roots of the eigenvalues of the symmetric matrix `root1 C2 root1.T`, which
    are the singular values of `root1 root2.T`: no matrix root, no complex numbers, and no trouble
    where a covariance is singular.

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
