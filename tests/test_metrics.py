import json
import math

import numpy as np
import pytest
from PIL import Image

from utils.metrics import GT_MEAN, PROTOCOLS, fidelity, released_grey, scaled_to_mean


def noise(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_grey_gives_red_the_share_of_blue():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert released_grey(colours).tolist() == [[29, 150, 76, 255]]  # 0.114, 0.587, 0.299 of 255


def test_grey_is_the_rounded_weighted_sum_everywhere():
    pixels = noise(0, 200, 200)
    exact = pixels @ np.array([0.114, 0.587, 0.299])
    assert np.abs(released_grey(pixels) - exact).max() < 0.51  # of a level


@pytest.mark.parametrize("protocol", [*PROTOCOLS, GT_MEAN])
def test_psnr_of_a_constant_difference(protocol):
    gt = np.full((20, 20, 3), 100, np.uint8)
    if protocol == GT_MEAN:  # which takes such a difference away
        gt[::2] = 120
        assert fidelity(gt, gt // 2, protocol)["psnr"] > 200
        assert fidelity(gt, gt // 2, protocol)["ssim"] == pytest.approx(1)
        assert fidelity(gt, gt, protocol)["psnr"] == math.inf
        return
    assert fidelity(gt, gt + 10, protocol)["psnr"] == pytest.approx(20 * math.log10(255 / 10))
    assert fidelity(gt, gt, protocol)["psnr"] == math.inf


def test_gt_mean_scales_by_means_of_grey_clips_and_does_not_round():
    enhanced = np.zeros((20, 20, 3), np.uint8)
    enhanced[:10] = 200, 10, 30  # grey 69.09, so 34.545 in the mean
    gt = np.full((20, 20, 3), 100, np.uint8)
    scale = 100 / 34.545
    expected = np.zeros((20, 20, 3))
    expected[:10] = 255, 10 * scale, 30 * scale  # 579 is clipped
    assert scaled_to_mean(enhanced, gt) == pytest.approx(expected)
    mse = np.square(expected - gt).mean()
    figures = fidelity(gt, enhanced, GT_MEAN)
    assert figures["psnr"] == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse))
    black = np.zeros((20, 20, 3), np.uint8)
    assert fidelity(gt, black, GT_MEAN) == fidelity(gt, black, "standard")
    assert fidelity(black, gt, GT_MEAN)["psnr"] == math.inf  # scaled to black


def test_ssim_of_two_flat_images_is_the_luminance_term():
    gt, enhanced = np.full((9, 9, 3), 100, np.uint8), np.full((9, 9, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert fidelity(gt, enhanced, "standard")["ssim"] == pytest.approx(expected)


def test_released_ssim_of_a_flat_result_is_a_number():
    flat = np.full((20, 20, 3), 255, np.uint8)
    assert fidelity(noise(0, 20, 20), flat, "released")["ssim"] == 0
    assert fidelity(flat, flat, "released")["ssim"] == 0


def test_only_what_is_wanted_is_computed():
    assert list(fidelity(noise(0), noise(1), "standard", ["ssim", "lpips"])) == ["ssim"]


@pytest.mark.parametrize("checkpoint", ["rave_unpaired", "clip_lit_paired"])
def test_figures_of_the_released_script(shared, checkpoint):
    expected = json.loads((shared / "expected" / "metrics.json").read_text())[checkpoint]
    for name, by_protocol in expected.items():
        enhanced, gt = (
            np.asarray(Image.open(path).convert("RGB"))
            for path in (
                shared / "expected" / checkpoint / name,
                shared / "photos" / "lol_eval15" / "gt" / name,
            )
        )
        for protocol, figures in by_protocol.items():
            ours = fidelity(gt, enhanced, protocol)
            assert ours["psnr"] == pytest.approx(figures["psnr"], abs=1e-5)
            assert ours["ssim"] == pytest.approx(figures["ssim"], abs=1e-6)
