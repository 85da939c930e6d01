import warnings

import numpy as np
import pytest
import torch
from pytorch_fid import fid_score
from pytorch_fid.inception import InceptionV3
from torchvision.transforms.functional import to_tensor

from evaluation.fid import (
    FeatureStatistics,
    fid,
    frechet_distance,
    inception_features,
    inception_pixels,
)
from evaluation.networks import load_inception


def test_distance_of_equal_covariances_is_that_of_the_means():
    root = np.random.default_rng(0).normal(size=(5, 5))
    shift = np.array([3.0, 0, 4, 0, 0])
    assert frechet_distance(np.zeros(5), root, shift, root) == pytest.approx(25)


def test_distance_of_diagonal_covariances():
    first, second = np.array([1.0, 2, 3]), np.array([4.0, 2, 1])
    zero = np.zeros(3)
    distance = frechet_distance(zero, np.diag(first), zero, np.diag(second))
    assert distance == pytest.approx(((first - second) ** 2).sum())


def test_distance_of_covariances_that_do_not_commute():
    first, second = np.array([[2.0, 1], [1, 2]]), np.array([[1.0, 0], [0, 4]])
    # In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    product = first @ second
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    roots = [np.linalg.cholesky(covariance).T for covariance in (first, second)]
    distance = frechet_distance(np.zeros(2), roots[0], np.zeros(2), roots[1])
    assert distance == pytest.approx(np.trace(first + second) - 2 * overlap)


def test_distance_of_singular_covariances():
    zero = np.zeros(4)
    along_x, along_y = np.array([[2.0, 0, 0, 0]]), np.array([[0, 3.0, 0, 0]])
    assert frechet_distance(zero, along_x, zero, along_y) == pytest.approx(4 + 9)
    assert frechet_distance(zero, along_x, zero, 3 * along_x) == pytest.approx(16)
    assert frechet_distance(zero, along_x, zero, along_x) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [2, 7, 45])  # fewer and more than 10 dimensions; several QRs
def test_running_statistics_are_those_of_all_vectors(count):
    vectors = 1000 + np.random.default_rng(0).normal(size=(count, 10))
    statistics = FeatureStatistics(10)
    for start in range(0, count, 4):
        statistics.add(vectors[start : start + 4])
    root = statistics.root()
    assert statistics.count == count and len(root) <= max(10, 2 * count)
    assert statistics.mean == pytest.approx(vectors.mean(axis=0))
    assert root.T @ root == pytest.approx(np.cov(vectors, rowvar=False), abs=1e-9)


def test_running_statistics_do_not_grow():
    statistics = FeatureStatistics(10)
    for seed in range(100):
        statistics.add(np.random.default_rng(seed).normal(size=(8, 10)))
        assert sum(rows.size for rows in statistics._rows) <= 2 * 10 * 10 + 9 * 10


def test_one_vector_has_no_covariance():
    statistics = FeatureStatistics(3)
    statistics.add(np.ones((1, 3)))
    with pytest.raises(ValueError, match="two vectors"):
        statistics.root()


def test_fid_is_pytorch_fids(random_hub):
    """Its own network on its own features; its distance only where SciPy still lets it."""
    images = [np.random.default_rng(i).integers(0, 64 + 32 * i, (48, 60, 3), dtype=np.uint8)
              for i in range(6)]  # fmt: skip
    theirs = InceptionV3().eval()
    with torch.no_grad():
        expected = torch.cat([theirs(to_tensor(image)[None])[0] for image in images]).flatten(1)
    ours = load_inception(None, torch.device("cpu")).network
    features = inception_features(ours, inception_pixels(*images))
    assert features.shape == (6, 2048)
    scale = expected.abs().max().item()
    assert features / scale == pytest.approx(expected.numpy() / scale, abs=1e-5)

    sides = FeatureStatistics(64), FeatureStatistics(64)
    for side, vectors in zip(sides, (features[:3, :64], features[3:, :64]), strict=True):
        side.add(vectors)
    covariances = [side.root().T @ side.root() for side in sides]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance = fid_score.calculate_frechet_distance(
                sides[0].mean, covariances[0], sides[1].mean, covariances[1]
            )
    except TypeError:
        pytest.skip("this SciPy's sqrtm lacks the argument that pytorch-fid's distance uses")
    assert fid(*sides) == pytest.approx(distance, rel=1e-3)
