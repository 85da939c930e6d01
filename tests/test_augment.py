import numpy as np
import pytest
import torch
from scipy import ndimage

from data.augment import (
    ENHANCER_ZOOM,
    GUIDANCE_ZOOM,
    Draw,
    apply_draw,
    generator_for,
    random_draw,
    warp,
)


def photo(height=24, width=24):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(5))


def resampled_by_scipy(image, matrix):
    """Scipy's 'reflect' repeats the edge pixel."""
    centre = (np.array(image.shape[-2:]) - 1) / 2
    planes = [
        ndimage.affine_transform(
            plane.double().numpy(),
            np.asarray(matrix),
            offset=centre - np.asarray(matrix) @ centre,
            order=1,
            mode="reflect",
        )
        for plane in image
    ]
    return torch.from_numpy(np.stack(planes)).float()


def test_flips_and_transposition_move_pixels():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None]
    assert apply_draw(Draw(flip_horizontal=True), image)[0].tolist() == [[2, 1], [4, 3]]
    assert apply_draw(Draw(flip_vertical=True), image)[0].tolist() == [[3, 4], [1, 2]]
    assert apply_draw(Draw(transpose=True), image)[0].tolist() == [[1, 3], [2, 4]]
    # All three: the horizontal flip first, the transposition last.
    assert apply_draw(Draw(True, True, True), image)[0].tolist() == [[4, 2], [3, 1]]


@pytest.mark.parametrize("zoom", [(0.5, 1.5), (1.3, 0.7), (0.55, 0.6)])
def test_zoom_is_scipys(zoom):
    image = photo()
    expected = resampled_by_scipy(image, np.diag([1 / zoom[0], 1 / zoom[1]]))
    torch.testing.assert_close(apply_draw(Draw(zoom=zoom), image), expected, atol=1e-5, rtol=0)


def test_zoom_above_one_enlarges():
    image = torch.zeros(1, 9, 9)
    image[0, 3:6, 3:6] = 1  # 3 x 3 pixels in the middle
    taller = apply_draw(Draw(zoom=(2.0, 1.0)), image)[0] > 0.5
    assert taller.sum(0).tolist() == [0, 0, 0, 5, 5, 5, 0, 0, 0]
    assert taller.sum(1).tolist() == [0, 0, 3, 3, 3, 3, 3, 0, 0]


@pytest.mark.parametrize("angle", [-71.0, 30.0, 45.0])
def test_rotation_is_scipys(angle):
    image = photo(24, 17)
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    expected = resampled_by_scipy(image, [[cosine, sine], [-sine, cosine]])
    torch.testing.assert_close(apply_draw(Draw(angle=angle), image), expected, atol=1e-5, rtol=0)


def test_quarter_turn_is_counter_clockwise():
    image = photo()
    turned = apply_draw(Draw(angle=90.0), image)
    torch.testing.assert_close(turned, torch.rot90(image, 1, (-2, -1)), atol=1e-5, rtol=0)


def test_border_repeats_the_edge_pixel():
    row = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    # The matrix triples every column's distance from the centre.
    out = warp(row, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))  # reads columns -3, 0, 3, 6
    assert out[0, 0].tolist() == pytest.approx([3.0, 1.0, 4.0, 2.0], abs=1e-5)


def test_zoom_comes_before_rotation():
    image = photo()
    draw = Draw(zoom=(0.6, 1.4), angle=35.0)
    one_after_the_other = apply_draw(Draw(angle=35.0), apply_draw(Draw(zoom=(0.6, 1.4)), image))
    assert torch.equal(apply_draw(draw, image), one_after_the_other)


def test_all_images_of_a_tuple_get_the_same_draw():
    images = torch.stack([photo(), 1 - photo(), photo().flip(0)])
    draw = Draw(True, False, True, (0.8, 1.2), -20.0)
    together = apply_draw(draw, images)
    for image, augmented in zip(images, together, strict=True):
        torch.testing.assert_close(apply_draw(draw, image), augmented)


def test_draws_follow_the_published_probabilities():
    draws = [random_draw(generator_for("draw", 0, 0, i), GUIDANCE_ZOOM) for i in range(3000)]
    for share, expected in (
        (np.mean([d.flip_horizontal for d in draws]), 0.5),
        (np.mean([d.flip_vertical for d in draws]), 0.5),
        (np.mean([d.transpose for d in draws]), 0.5),
        (np.mean([d.zoom is not None for d in draws]), 0.3),
        (np.mean([d.angle is not None for d in draws]), 0.3),
        (np.mean([d.zoom is not None and d.angle is not None for d in draws]), 0.09),
    ):
        assert share == pytest.approx(expected, abs=0.035)  # four standard deviations
    zooms = np.array([d.zoom for d in draws if d.zoom])  # (~900, 2)
    angles = np.array([d.angle for d in draws if d.angle is not None])
    for values, low, high in ((zooms[:, 0], 0.5, 1.5), (zooms[:, 1], 0.5, 1.5), (angles, -90, 90)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.04 * (high - low))
    assert abs(np.corrcoef(zooms.T)[0, 1]) < 0.15  # each axis by itself


def test_enhancer_zooms_less():
    draws = [random_draw(generator_for("draw", 1, 0, i), ENHANCER_ZOOM) for i in range(1000)]
    zooms = np.array([d.zoom for d in draws if d.zoom])
    assert 0.7 <= zooms.min() < 0.73
    assert 1.27 < zooms.max() <= 1.3


def test_a_draw_depends_on_every_part_of_its_key():
    draws = [
        random_draw(generator_for("draw", *key), ENHANCER_ZOOM)
        for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))
    ]
    seeds = [generator_for(*key).initial_seed() for key in ((0, 11), (0, 1, 1), (1, 0, 1))]
    assert draws[0] == draws[4]
    assert len(set(seeds)) == 3
    assert len({repr(generator_for("draw", 0, 0, i).initial_seed()) for i in range(100)}) == 100
