"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.encoders import CLIPEncoder
from models.vocabulary import embed_vocabulary
from tests.forks import DRAWINGS, Forks, stand_in
from tests.golden.make_inputs import tiny_clip
from training.encoder_weights import load_encoder
from utils.script import end_children

LARGEST_CREW = 4  # test processes; each holds the libraries
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more test process than cores, since many tests wait for processes of their own."""
    return min(LARGEST_CREW, (os.cpu_count() or 1) + 1)


def pytest_sessionfinish() -> None:
    """End loading processes that a failed test's traceback keeps; Python would wait for them."""
    end_children()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs, released checkpoints and golden numbers beside the repo."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the photographs and golden numbers of {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with a ViT and a text side in OpenAI's format, of random weights."""
    path = tmp_path_factory.mktemp("clip") / "tiny_clip_vit.pt"
    torch.save(tiny_clip("vit"), path)
    return path


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with a ResNet and a text side in OpenAI's format, of random weights."""
    path = tmp_path_factory.mktemp("clip") / "tiny_clip_resnet.pt"
    torch.save(tiny_clip("resnet"), path)
    return path


def looks_at_64_pixels(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIP's weights, cut so that its encoder takes 64x64 pixels, 2x2 cells, instead of 224x224.

    Open_clip reads the size from the position embedding: a row for each cell, and one for them all.
    """
    (name,) = (n for n in weights if n.startswith("visual.") and n.endswith("positional_embedding"))
    return weights | {name: weights[name][:5].clone()}


@pytest.fixture(scope="session")
def small_vit(tiny_vit: Path) -> Path:
    """The tiny CLIP with a ViT, for trainings: their steps are mostly its work."""
    path = tiny_vit.with_name("small_clip_vit.pt")
    torch.save(looks_at_64_pixels(torch.load(tiny_vit, weights_only=True)), path)
    return path


@pytest.fixture(scope="session")
def small_resnet(tiny_resnet: Path) -> Path:
    """The tiny CLIP with a ResNet for trainings."""
    path = tiny_resnet.with_name("small_clip_resnet.pt")
    torch.save(looks_at_64_pixels(torch.load(tiny_resnet, weights_only=True)), path)
    return path


@pytest.fixture(scope="session")
def guidance_encoder(tiny_vit: Path) -> CLIPEncoder:
    """The tiny CLIP with a ViT."""
    return load_encoder("ViT-B-32", tiny_vit)


@pytest.fixture(scope="session")
def identity_encoder(tiny_resnet: Path) -> CLIPEncoder:
    """The tiny CLIP with a ResNet."""
    return load_encoder("RN101", tiny_resnet)


@pytest.fixture(scope="session")
def forks(
    tmp_path_factory: pytest.TempPathFactory, small_vit: Path, small_resnet: Path
) -> Iterator[Forks]:
    """Runs scripts by the dozen."""
    folder = tmp_path_factory.mktemp("said")
    with closing(Forks(folder, str(small_vit), str(small_resnet))) as forks:
        yield forks


@pytest.fixture(scope="session")
def vocabulary(
    guidance_encoder: CLIPEncoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], torch.Tensor]:
    """CLIP's vocabulary, V texts, and what the tiny ViT's text side makes of it, (V, 512)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return embed_vocabulary(guidance_encoder)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch home whose hub cache has an AlexNet and a FID Inception of random weights.

    It takes long to make; so the first of the test processes that needs it makes it for all.
    """
    import fcntl  # of POSIX

    from benchmarks.metrics import save_random_weights  # imports much that few tests need

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "torch_home"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            torch.manual_seed(0)
            save_random_weights(home / "hub" / "checkpoints")
            (home / "done").touch()
    return home


@pytest.fixture(scope="session")
def niqe_parameters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of BasicSR's form with NIQE's window, and a random mean and covariance."""
    rng, bell = np.random.default_rng(0), np.exp(-np.square(np.arange(-3, 4)) / (2 * (7 / 6) ** 2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    roots = rng.normal(size=(50, 36)) * rng.uniform(0.3, 1, 36)
    path = tmp_path_factory.mktemp("niqe") / "mine.npz"
    np.savez(
        path,
        mu_pris_param=rng.uniform(0, 2, (1, 36)),
        cov_pris_param=roots.T @ roots / 50,
        gaussian_window=window,
    )
    return path


@pytest.fixture
def random_hub(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let torch's hub find the random weights, and nothing else."""
    monkeypatch.setenv("TORCH_HOME", str(random_weights))
    return random_weights


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch home without weights, on a machine without network."""

    def unreachable(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path


@pytest.fixture(scope="session")
def training_folders(tmp_path_factory) -> Path:
    """Four dark and four light pictures of 40 x 32 pixels, of the same names."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, gain in (("backlit", 0.3), ("well_lit", 1.0)):
        (root / name).mkdir()
        for index in range(4):
            pixels = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
            photo = Image.fromarray(pixels).resize((40, 32), Image.Resampling.BICUBIC)
            photo.point(lambda value, gain=gain: value * gain).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def tiny_run(training_folders, small_vit, small_resnet, tmp_path, monkeypatch) -> list[str]:
    """Arguments that both training scripts take, for a run with the small CLIP in seconds.

    In this process such a run only pretends to draw.
    """
    for name in DRAWINGS:
        monkeypatch.setattr(name, stand_in(name))
    return [
        *("-b", str(training_folders / "backlit"), "-r", str(training_folders / "well_lit")),
        *("--save_dir", str(tmp_path), "--exp_name", "run", "--device", "cpu"),
        *("--clip_weights", str(small_vit)),
        *("--identity_weights", str(small_resnet)),
        *("--image_size", "16", "--train_batch_size", "2", "--num_workers", "0"),
        *("--num_reconstruction_iters", "3", "--display_iter", "2", "--start_light_map", "1"),
    ]
