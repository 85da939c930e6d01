import numpy as np
import pytest

from evaluation.histogram import as_svg, draw_histogram
from evaluation.summary import estimate_mean


def test_histogram_counts_every_image_and_marks_mean_and_interval():
    values = [1.0, 1.1, 1.2, 5.0]
    (axes,) = draw_histogram(values, "psnr").axes
    band, *bars = axes.patches
    assert [bar.get_height() for bar in bars] == [3, 0, 0, 0, 1]
    assert axes.lines[0].get_xdata()[0] == np.mean(values)
    low, high = estimate_mean(values).interval
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((low, high))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1.000", "3.000", "5.000"]


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [2.0, np.nextafter(2.0, 3)]])
def test_histogram_of_equal_values_is_one_bar(values):
    (axes,) = draw_histogram(values, "psnr").axes
    assert max(bar.get_height() for bar in axes.patches[-5:]) == len(values)
    assert axes.get_xlim() == pytest.approx((1.5, 2.5))


def test_svg_is_the_same_in_every_run():
    first, second = (as_svg(draw_histogram([1.0, 2.0, 4.0], "ssim")) for _ in range(2))
    assert first == second and b"nan" not in first
