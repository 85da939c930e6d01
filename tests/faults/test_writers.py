"""Whatever is written, an unmodified Pillow and our own reader read it back."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from data.images import Photo, read_photo, to_8_bits, write_photo

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp")
LOSSLESS = (".png", ".tif", ".bmp")
# In a process of its own, where nobody has changed Pillow's limits:
READ_WITH_PILLOW = """
import json, sys
import numpy as np
from PIL import Image
for line in sys.stdin:
    path = line.strip()
    try:
        with Image.open(path) as image:
            image.load()
            image.getexif()
            samples = np.asarray(image)
        np.save(path + ".npy", samples)
        told = [image.mode, len(image.info.get("icc_profile") or b"")]
    except Exception as error:
        told = repr(error)
    print(json.dumps(told), flush=True)
"""


class Pillow:
    """An unmodified Pillow in a process of its own."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        run = [sys.executable, "-W", "ignore", "-c", READ_WITH_PILLOW]
        self.process = subprocess.Popen(
            run, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def read(self, path: Path) -> tuple[np.ndarray, int]:
        """Read samples (H, W, C) and the length of the profile."""
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        assert isinstance(told, list), told
        samples = np.load(f"{path}.npy")
        return samples.reshape(*samples.shape[:2], -1), told[1]

    def __enter__(self) -> "Pillow":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def smooth(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    """Samples (H, W, C) that JPEG and WebP keep nearly."""
    height, width, channels = shape
    rng = np.random.default_rng(seed)  # neighbours differ little in hue, of which WebP keeps half
    coarse = rng.integers(60, 200, (2, 2, 1)) + rng.integers(-8, 9, (2, 2, channels))
    coarse = coarse.astype(np.uint8)
    planes = [
        np.asarray(
            Image.fromarray(coarse[..., k]).resize((width, height), Image.Resampling.BILINEAR)
        )
        for k in range(channels)
    ]
    samples = np.stack(planes, axis=-1)
    return samples if dtype == np.uint8 else samples.astype(np.uint16) * 257 + seed % 2


def tags(seed: int, size: int) -> bytes:
    """EXIF bytes: sound, with odd types, or of noise, and of some size."""
    rng = np.random.default_rng(seed)
    exif = Image.Exif()
    exif[0x010F], exif[0x0131] = "Maker", "x" * size
    exif[0x011A], exif[0x011B], exif[0x0128] = 72.0, 72.0, int(rng.integers(1, 5))
    exif[0x8769] = {0x829A: 0.01, 0x927C: bytes(rng.integers(0, 256, 40, dtype=np.uint8))}
    data = bytearray(exif.tobytes()[6:])
    for at in rng.integers(8, min(len(data), 150), int(rng.integers(0, 4))):
        data[at] = rng.integers(256)
    return bytes(data)


photos = st.fixed_dictionaries(
    {
        "suffix": st.sampled_from(SUFFIXES),
        "height": st.integers(1, 40),
        "width": st.integers(1, 40),
        "channels": st.sampled_from([1, 3]),
        "alpha": st.booleans(),
        "dtype": st.sampled_from([np.uint8, np.uint16]),
        "seed": st.integers(0, 2**16),
        "profile": st.sampled_from([0, 0, len(ICC), 2**20, 2**20 + 1, 3 * 2**20]),
        "exif": st.sampled_from([None, 10, 200, 64_000, 66_000, 200_000]),
    }
)


def check_written(case: dict, folder: Path, pillow: Pillow) -> None:
    """Write the photograph of a case; both readers must give its pixels back."""
    suffix, dtype, channels = case["suffix"], case["dtype"], case["channels"]
    alpha = case["alpha"] and suffix not in (".jpg", ".bmp")
    samples = smooth((case["height"], case["width"], channels + 1), dtype, case["seed"])
    profile = ICC.ljust(case["profile"], b"\0") if case["profile"] else None
    exif = None if case["exif"] is None else tags(case["seed"], case["exif"])
    photo = Photo(
        samples[..., :-1], samples[..., -1] if alpha else None, icc_profile=profile, exif=exif
    )
    path = folder / f"a{suffix}"
    notes = write_photo(photo, path)

    pixels, length = pillow.read(path)
    again = read_photo(path)
    assert length == len(again.icc_profile or b"")
    applied = any("converted to sRGB" in note for note in notes)
    if profile:
        assert length == len(profile) or applied or any("profile" in note for note in notes)
    expected = photo.pixels if suffix in (".png", ".tif") else to_8_bits(photo.pixels)
    near = (0 if suffix in LOSSLESS else 24) + 2 * applied
    near *= np.iinfo(expected.dtype).max // 255
    assert again.pixels.dtype == expected.dtype
    assert np.abs(again.pixels.astype(int) - expected).max() <= near
    assert (again.alpha is None) == (not alpha)
    if alpha:
        deep = suffix in (".png", ".tif")
        assert np.array_equal(again.alpha, photo.alpha if deep else to_8_bits(photo.alpha))
    if pixels.dtype == np.uint8 and expected.dtype == np.uint8:
        kept = pixels[..., :channels]
        assert np.abs(kept.astype(int) - again.pixels[..., :channels]).max() <= near
    elif pixels.dtype == np.uint8:  # Pillow halves 16-bit colours
        half = (again.pixels >> 8).astype(int)
        assert np.abs(pixels[..., : half.shape[2]].astype(int) - half).max() <= 1


def test_what_is_written_is_read_back(tmp_path, fault, count) -> None:
    with Pillow() as pillow:

        @settings(
            max_examples=count(150, 2000),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(photos)
        def holds(case: dict) -> None:
            with fault("photograph written and read back").case(f"{case}"):
                check_written(case, tmp_path, pillow)

        holds()


def rgb_profile(scale: float) -> bytes:
    """The profile of sRGB with its red and blue exchanged, a well-known other space."""
    data = bytearray(ICC)
    places = {}
    for k in range(int.from_bytes(ICC[128:132], "big")):
        entry = 132 + 12 * k
        places[ICC[entry : entry + 4]] = entry
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        ICC[blue + 4 : blue + 12],
        ICC[red + 4 : red + 12],
    )
    return bytes(data).ljust(int(scale), b"\0")


def test_a_profile_that_cannot_be_kept_is_applied(tmp_path, fault, count) -> None:
    """Under a profile that exchanges red and blue, so do the pixels when it is applied."""
    for number in range(count(6, 60)):
        for suffix in (".png", ".bmp", ".jpg"):
            for dtype in (np.uint8, np.uint16):
                pixels = smooth((12, 9, 3), dtype, number)
                large = 20 * 2**20 if suffix == ".jpg" else 2 * 2**20
                photo = Photo(pixels, icc_profile=rgb_profile(large))
                path = tmp_path / f"a{suffix}"
                with fault("profile that cannot be kept").case(f"{suffix} {dtype} {number}"):
                    notes = write_photo(photo, path)
                    assert any("converted to sRGB" in note for note in notes)
                    again = read_photo(path)
                    assert again.icc_profile is None
                    expected = pixels if suffix == ".png" else to_8_bits(pixels)
                    near = (12 if suffix == ".jpg" else 2) * np.iinfo(expected.dtype).max // 255
                    swapped = again.pixels[..., ::-1].astype(int)
                    assert np.abs(swapped - expected).max() <= near
