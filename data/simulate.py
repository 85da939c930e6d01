"""Simulated backlighting: darken a well-lit photograph behind a smooth mask, in linear light."""

from __future__ import annotations

import numpy as np

# Gains of linear light, drawn log-uniformly:
DARK_GAIN = (0.03, 0.5)  # where the mask is 1
BRIGHT_GAIN = (0.25, 1.3)  # where it is 0; above 1 highlights clip, as behind a backlit subject
GAMMA = 2.2


def simulate_backlight(photo: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Darken a photograph as if the light came from behind the subject.

    A smooth random mask, a gradient and in half of the cases a round subject, is darkened most.
    Linear light is scaled and clipped; rounding to 8 bits then removes detail from the shadows, as
    in a camera.

    Args:
        photo: (H, W, 3) uint8.
        generator: source of all randomness.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = photo.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, offset, steepness = generator.uniform([0, -0.9, 2], [2 * np.pi, 0.6, 12])
    mask = sigmoid((x * np.cos(angle) + y * np.sin(angle) - offset) * steepness)  # (H, W)
    if generator.random() < 0.5:
        left, top, radius, sharpness = generator.uniform([-0.6, -0.6, 0.3, 4], [0.6, 0.6, 0.8, 15])
        subject = sigmoid((radius - np.hypot(x - left, y - top)) * sharpness)
        mask = np.maximum(mask, subject)
    dark, bright = (generator.uniform(*np.log(gain)) for gain in (DARK_GAIN, BRIGHT_GAIN))
    gain = np.exp(dark * mask + bright * (1 - mask))[..., None]
    light = (photo / 255.0) ** GAMMA * gain
    return np.rint(255 * light.clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Compute the logistic function."""
    return 1 / (1 + np.exp(-values))
