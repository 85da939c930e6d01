"""Exposure fusion, on brackets that are made from one scene of known light."""

import numpy as np
import pytest
from skimage import data as scenes

from data.fusion import collapse, fuse, laplacian_pyramid, weigh


@pytest.fixture(scope="module")
def light():
    """Linear light of a scene whose right half is forty times as bright as its left half."""
    scene = (scenes.astronaut()[::4, ::4] / 255.0) ** 2.2
    return scene * np.geomspace(0.05, 2, scene.shape[1])[:, None]


def expose(light, gain):
    return np.rint(255 * (gain * light).clip(0, 1) ** (1 / 2.2)).astype(np.uint8)


def is_exposed(photo):
    """The share of pixels that are neither all but black nor all but white."""
    return np.mean((photo > 25).all(axis=2) & (photo < 230).all(axis=2))


def test_the_fusion_shows_more_than_any_frame(light):
    frames = [expose(light, gain) for gain in (0.25, 1, 4, 16)]
    assert is_exposed(fuse(frames)) > max(map(is_exposed, frames))
    plain = np.mean(frames, axis=0).astype(np.uint8)
    assert fuse(frames).std() > plain.std()


def test_frames_that_are_alike_stay_as_they_are(light):
    frame = expose(light, 1)
    assert np.array_equal(fuse([frame]), frame)
    assert np.abs(fuse([frame] * 3).astype(int) - frame).max() <= 1


def test_the_order_of_the_frames_does_not_matter(light):
    frames = [expose(light, gain) for gain in (0.5, 2, 8)]
    difference = fuse(frames).astype(int) - fuse(frames[::-1])
    assert np.abs(difference).max() <= 1


def test_a_frame_without_weight_adds_nothing(light):
    rng = np.random.default_rng(0)
    frame = rng.integers(64, 192, (64, 96, 3), dtype=np.uint8)  # has contrast and colour everywhere
    black = np.zeros_like(frame)
    assert np.abs(fuse([frame, black]).astype(int) - frame).mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (7, 5), (33, 64)])
def test_a_pyramid_adds_up_to_its_image(shape):
    image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    levels = int(np.log2(min(shape)))
    pyramid = laplacian_pyramid(image, levels)
    assert len(pyramid) == levels + 1
    assert np.allclose(collapse(pyramid), image, atol=1e-6)
    if levels:  # an even image has nothing but its last level
        even = laplacian_pyramid(np.full_like(image, 0.3), levels)
        assert np.abs(even[0]).max() < 1e-6 and np.allclose(even[-1], 0.3)


def test_weights_are_the_papers():
    image = np.full((5, 5, 3), (0.5, 0.7, 0.3), dtype=np.float32)
    image[2, 2] += 0.1
    contrast = 4 * 0.1  # of the point against its four neighbours
    saturation = np.std([0.6, 0.8, 0.4])
    exposure = np.exp(-(0.1**2 + 0.3**2 + 0.1**2) / (2 * 0.2**2))
    assert weigh(image)[2, 2, 0] == pytest.approx(contrast * saturation * exposure, rel=1e-4)
    assert np.all(weigh(image)[0, 0] < 1e-6)  # no contrast


def test_frames_of_two_sizes_are_refused(light):
    frame = expose(light, 1)
    with pytest.raises(ValueError, match="one size"):
        fuse([frame, frame[1:]])
    with pytest.raises(ValueError, match="one size"):
        fuse([])


def test_it_is_opencvs(light):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    frames = [expose(light, gain) for gain in (0.25, 1, 4)]
    theirs = 255 * cv2.createMergeMertens(1, 1, 1).process(frames).clip(0, 1)
    assert np.abs(theirs - fuse(frames)).mean() < 1
