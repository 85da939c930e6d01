"""Simulated lack of light: darken a well-lit photograph in linear light, as a camera sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

# Gains of linear light, drawn log-uniformly:
DARK_GAIN = (0.03, 0.5)  # where the mask is 1
BRIGHT_GAIN = (0.25, 1.3)  # where it is 0; above 1 highlights clip, as behind a backlit subject
DARKEST, DIM = 0.005, 0.1  # of a whole photograph, as by night
GAMMA = 2.2
NIGHT = 0.25  # share of the photographs that are darkened as a whole
MASKS = {"smooth": 0.6, "segments": 0.4}  # and their shares of the others
NOISY = 0.5  # share of the photographs that get noise
# Of the noise in linear light, whose variance is SHOT * light + READ squared; drawn log-uniformly:
SHOT, READ = (1e-5, 3e-4), (1e-4, 1e-3)
DARKER = 0.85  # a simulation's mean without noise is at most this share of the photograph's
SEGMENTS_SIDE = 96  # pixels of the longer side, at which regions are found
SEGMENTS = (3, 15)  # fewest, and one more than most
BLUR = (0.003, 0.03)  # of the regions' borders, as a share of the longer side


def simulate(
    photo: np.ndarray,
    generator: np.random.Generator,
    night: float = NIGHT,
    darkest: float = DARKEST,
) -> np.ndarray:
    """Darken a photograph in one of several ways, and in half of the cases add noise.

    The kinds: behind a smooth mask, as `simulate_backlight` does; some of the photograph's own
    regions, rather its darker ones; the whole photograph, as by night.

    Args:
        photo: (H, W, 3) uint8.
        generator: source of all randomness.
        night: how often the last kind is drawn, 0 to 1.
        darkest: the least gain of linear light of that kind, above 0, at most 0.1.

    Returns:
        (H, W, 3) uint8; before noise is added, 15 % darker in the mean at least.
    """
    kinds = {name: (1 - night) * share for name, share in MASKS.items()} | {"dim": night}
    kind = generator.choice(list(kinds), p=list(kinds.values()))
    noisy = generator.random() < NOISY
    while True:
        light = linear(photo) * draw_gain(kind, photo, generator, darkest)
        if encoded(light).mean() <= DARKER * photo.mean():
            break
    if noisy:
        shot, read = log_uniform(generator, SHOT), log_uniform(generator, READ)
        light += generator.normal(size=light.shape) * np.sqrt(shot * light + read**2)
    return encoded(light)


def simulate_backlight(photo: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Darken a photograph behind a smooth mask, as if the light came from behind the subject.

    Linear light is scaled and clipped; rounding to 8 bits then removes detail from the shadows, as
    in a camera.

    Args:
        photo: (H, W, 3) uint8.
        generator: source of all randomness.

    Returns:
        (H, W, 3) uint8.
    """
    return encoded(linear(photo) * masked_gain(smooth_mask(photo, generator), generator))


def smooth_mask(photo: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a gradient and in half of the cases a round subject: (H, W) in [0, 1], 1 darkest."""
    height, width = photo.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, offset, steepness = generator.uniform([0, -0.9, 2], [2 * np.pi, 0.6, 12])
    mask = sigmoid((x * np.cos(angle) + y * np.sin(angle) - offset) * steepness)
    if generator.random() < 0.5:
        left, top, radius, sharpness = generator.uniform([-0.6, -0.6, 0.3, 4], [0.6, 0.6, 0.8, 15])
        subject = sigmoid((radius - np.hypot(x - left, y - top)) * sharpness)
        mask = np.maximum(mask, subject)
    return mask


def segments_mask(photo: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw regions of a photograph, rather its darker ones: (H, W) in [0, 1], 1 darkest.

    The regions are SLIC's superpixels (Achanta et al. 2012).
    """
    from skimage.segmentation import slic  # takes a second to import

    height, width = photo.shape[:2]
    scale = min(1.0, SEGMENTS_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))
    regions = slic(small, int(generator.integers(*SEGMENTS)), start_label=0)
    light = small.mean(axis=2).ravel()
    lightness = np.bincount(regions.ravel(), light) / np.bincount(regions.ravel())
    order = lightness + generator.normal(scale=0.5 * light.std(), size=lightness.size)
    dark = order <= np.quantile(order, generator.uniform(0.3, 0.9))
    mask = Image.fromarray(np.uint8(255 * dark[regions])).resize((width, height))
    sigma = log_uniform(generator, BLUR) * max(height, width)
    return gaussian_filter(np.asarray(mask) / 255.0, sigma).clip(0, 1)


def draw_gain(
    kind: str, photo: np.ndarray, generator: np.random.Generator, darkest: float
) -> np.ndarray | float:
    """Draw gains of linear light for a photograph (H, W, 3): (H, W, 1), or one for all pixels."""
    if kind == "dim":
        return log_uniform(generator, (darkest, DIM))
    mask = {"smooth": smooth_mask, "segments": segments_mask}[kind]
    return masked_gain(mask(photo, generator), generator)


def masked_gain(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw gains where a mask (H, W) is 1 and where it is 0: (H, W, 1)."""
    dark, bright = (generator.uniform(*np.log(gain)) for gain in (DARK_GAIN, BRIGHT_GAIN))
    return np.exp(dark * mask + bright * (1 - mask))[..., None]


def log_uniform(generator: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(generator.uniform(*np.log(bounds))))


def linear(photo: np.ndarray) -> np.ndarray:
    """A photograph's linear light, in [0, 1]."""
    return (photo / 255.0) ** GAMMA


def encoded(light: np.ndarray) -> np.ndarray:
    """Linear light as a photograph, uint8; what is above 1 is clipped."""
    return np.rint(255 * light.clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Compute the logistic function."""
    return 1 / (1 + np.exp(-values))
