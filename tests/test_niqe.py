"""NIQE against a plain form of its formula, and against values that BasicSR computed."""

import math

import numpy as np
import pytest
import skimage.data
from scipy.special import gamma

from data.images import read_rgb
from evaluation.networks import load_niqe
from evaluation.niqe import Unmeasurable, fit_aggd, halve, niqe


def plain_window() -> np.ndarray:
    """The window of 7x7 with standard deviation 7/6."""
    x = np.arange(-3, 4)
    bell = np.exp(-(x**2) / (2 * (7 / 6) ** 2))
    window = np.outer(bell, bell)
    return window / window.sum()


def plain_local_means(image: np.ndarray) -> np.ndarray:
    """Weighted means, as float32, in which the mean of a flat area is its value exactly."""
    padded, window = np.pad(image, 3, mode="edge"), plain_window()
    height, width = image.shape
    total = sum(
        window[i, j] * padded[i : i + height, j : j + width] for i in range(7) for j in range(7)
    )
    return total.astype(np.float32)


def plain_cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def plain_halving(length: int) -> np.ndarray:
    """The matrix, (length / 2, length), of MATLAB's imresize to one half along an axis."""
    matrix = np.zeros((length // 2, length))
    for row in range(length // 2):
        centre = 2 * row + 0.5
        for column in range(2 * row - 6, 2 * row + 8):
            mirrored = -column - 1 if column < 0 else column
            mirrored = 2 * length - 1 - column if column >= length else mirrored
            matrix[row, mirrored] += plain_cubic((column - centre) / 2) / 2
    return matrix / matrix.sum(axis=1, keepdims=True)


def plain_fit(values: np.ndarray) -> tuple[float, float, float]:
    """Shape and both scales of an asymmetric generalised Gaussian, by a search of the table."""
    values = values.ravel()
    left = math.sqrt(np.mean(values[values < 0] ** 2))
    right = math.sqrt(np.mean(values[values > 0] ** 2))
    g = left / right
    r = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = r * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shapes = 0.2 + 0.001 * np.arange(9801)
    ratios = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    shape = shapes[np.argmin(np.abs(ratios - wanted))]
    scale = math.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def plain_features(image: np.ndarray, side: int) -> list[list[float]]:
    mean = plain_local_means(image)
    deviation = np.sqrt(np.abs(plain_local_means(image**2) - mean**2))
    normalised, features = (image - mean) / (deviation + 1), []
    for top in range(0, image.shape[0], side):
        for left in range(0, image.shape[1], side):
            block = normalised[top : top + side, left : left + side]
            shape, low, high = plain_fit(block)
            row = [shape, (low + high) / 2]
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                neighbour = np.roll(np.roll(block, down, axis=0), right, axis=1)
                shape, low, high = plain_fit(block * neighbour)
                row += [shape, (high - low) * gamma(2 / shape) / gamma(1 / shape), low, high]
            features.append(row)
    return features


def plain_niqe(pixels: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    height, width = (96 * (side // 96) for side in pixels.shape[:2])
    red, green, blue = np.moveaxis(pixels[:height, :width].astype(float), 2, 0)
    luma = np.round(16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255)
    halved = (plain_halving(height) @ luma @ plain_halving(width).T).astype(np.float32)
    features = np.hstack([plain_features(luma, 96), plain_features(halved, 48)])
    shift = features.mean(axis=0) - mean
    inverse = np.linalg.pinv((np.cov(features.T) + covariance) / 2)
    return math.sqrt(shift @ inverse @ shift)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_values_are_those_of_the_plain_formula(name, niqe_parameters):
    photo = getattr(skimage.data, name)()
    with np.load(niqe_parameters) as file:
        expected = plain_niqe(photo, file["mu_pris_param"][0], file["cov_pris_param"])
    pristine = load_niqe(niqe_parameters).network
    assert niqe(photo, pristine) == pytest.approx(expected, abs=1e-3)
    assert abs(niqe(photo // 2, pristine) - expected) > 0.01


@pytest.mark.parametrize(
    ("photo", "value"),
    [
        ("low_light/dicm/01.jpg", 3.35679),
        ("low_light/npe/birds.jpg", 2.98912),
        ("low_light/mef/Candle.png", 7.19971),
        ("lol_eval15/gt/1.png", 5.08220),
    ],
)
def test_values_are_those_of_basicsr(photo, value, shared):
    parameters = shared / "niqe" / "niqe_pris_params.npz"
    if not parameters.is_file():
        pytest.skip(f"needs the official parameters at {parameters}")
    pixels = read_rgb(shared / "photos" / photo)
    assert niqe(pixels, load_niqe(parameters).network) == pytest.approx(value, abs=1e-3)


def test_halving_is_matlabs_antialiased_bicubic_one():
    image = np.random.default_rng(0).uniform(0, 255, (12, 20))
    expected = plain_halving(12) @ image @ plain_halving(20).T
    assert halve(halve(image, 0), 1) == pytest.approx(expected)


def test_a_generalised_gaussian_is_found_again():
    rng = np.random.default_rng(0)
    # The second is three times as wide to the left, where it has three times as many values:
    sides = rng.choice([-3, 1], (300, 300), p=[3 / 4, 1 / 4])
    blocks = np.stack([rng.normal(0, 2, (300, 300)), sides * rng.exponential(1, (300, 300))])
    shape, left, right = fit_aggd(blocks)
    assert shape == pytest.approx([2, 1], abs=0.03)
    assert left == pytest.approx([2 * math.sqrt(2), 3], rel=0.02)
    assert right == pytest.approx([2 * math.sqrt(2), 1], rel=0.02)


def test_flat_blocks_are_left_out_and_two_with_texture_are_needed(niqe_parameters):
    pristine = load_niqe(niqe_parameters).network
    photo = skimage.data.astronaut()[:192, :192].copy()
    whole = niqe(photo, pristine)
    photo[:96, :96] = 77
    assert math.isfinite(niqe(photo, pristine)) and niqe(photo, pristine) != whole
    photo[:, :96] = 77
    assert math.isfinite(niqe(photo, pristine))
    photo[:96] = 77
    with pytest.raises(Unmeasurable, match="no two blocks of 96x96 with texture"):
        niqe(photo, pristine)


@pytest.mark.parametrize(("size", "enough"), [((191, 191), False), ((96, 192), True)])
def test_two_blocks_are_needed(size, enough, niqe_parameters):
    photo, pristine = skimage.data.astronaut()[: size[0], : size[1]], load_niqe(niqe_parameters)
    if enough:
        assert niqe(photo, pristine.network) > 0
    else:
        with pytest.raises(Unmeasurable, match="smaller than the two blocks of 96x96"):
            niqe(photo, pristine.network)
