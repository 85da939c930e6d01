import warnings

import numpy as np
import pytest
from pytorch_fid import fid_score

from evaluation.fid import fid, frechet_distance, mean_and_root


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


@pytest.mark.parametrize("count", [2, 7, 10, 45])  # fewer and more than dimensions
def test_root_is_that_of_the_covariance(count):
    features = 1000 + np.random.default_rng(0).normal(size=(count, 10))
    mean, root = mean_and_root(features)
    assert len(root) <= 10
    assert mean == pytest.approx(features.mean(axis=0))
    assert root.T @ root == pytest.approx(np.cov(features, rowvar=False), abs=1e-9)


def test_single_precision_is_not_squared():
    features = 1000 + np.random.default_rng(0).normal(size=(45, 10)).astype(np.float32)
    assert fid(features, features) == pytest.approx(0, abs=1e-9)
    assert fid(features, features + np.float32(1)) == pytest.approx(10, rel=1e-5)


def test_one_feature_has_no_covariance():
    with pytest.raises(ValueError, match="two features"):
        fid(np.ones((3, 3)), np.ones((1, 3)))


def test_distance_is_pytorch_fids():
    """Where SciPy still lets it, and for more images than features, of which it is exact."""
    generator = np.random.default_rng(0)
    sides = [generator.normal(size=(40, 10)) @ generator.normal(size=(10, 10)) for _ in range(2)]
    statistics = [
        value for side in sides for value in (side.mean(axis=0), np.cov(side, rowvar=False))
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = fid_score.calculate_frechet_distance(*statistics)
    except TypeError:
        pytest.skip("this SciPy's sqrtm lacks the argument that pytorch-fid's distance uses")
    assert fid(*sides) == pytest.approx(expected, rel=1e-6)
