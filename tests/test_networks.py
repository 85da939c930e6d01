import warnings
from urllib.error import URLError

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid.inception import InceptionV3
from torchvision import models
from torchvision.transforms.functional import normalize, resize, to_tensor

from evaluation.networks import (
    LPIPS_BACKBONES,
    inception_features,
    load_inception,
    load_lpips,
    load_niqe,
    lpips_distance,
)
from utils.checkpoint import save
from utils.errors import UserError

CPU = torch.device("cpu")


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def library_lpips() -> lpips.LPIPS:
    """LPIPS as its library builds it; it finds the weights of the fixture `random_hub`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(verbose=False)


@pytest.fixture
def squeeze(tmp_path):
    path = tmp_path / "mine.pth"
    save(models.squeezenet1_1().state_dict(), path)
    return path


def test_missing_weights_say_which_file_goes_where(empty_hub):
    with pytest.raises(UserError) as error:
        load_lpips("alex", None, CPU)
    assert "alexnet-owt-7be5be79.pth" in str(error.value)
    assert str(empty_hub / "hub" / "checkpoints") in str(error.value)
    assert "--lpips_weights" in str(error.value) and "no network" in str(error.value)
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05-6726825d\.pth.*--fid_weights"):
        load_inception(None, CPU)


def test_downloads_check_the_hash_in_the_name(empty_hub, monkeypatch, squeeze):
    asked = []

    def download(url, path, prefix):
        asked.append((url, prefix))
        squeeze.rename(path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    loaded = load_lpips("squeeze", None, CPU)
    assert asked == [(LPIPS_BACKBONES["squeeze"], "b8a52dc0")]
    assert loaded.weights.parent == empty_hub / "hub" / "checkpoints"


def test_the_backbones_are_torchvision_s():
    names = ("AlexNet_Weights", "VGG16_Weights", "SqueezeNet1_1_Weights")
    published = [getattr(models, name).IMAGENET1K_V1.url for name in names]
    assert list(LPIPS_BACKBONES.values()) == published
    assert list(LPIPS_BACKBONES) == ["alex", "vgg", "squeeze"]


def test_given_weights_are_the_ones_used(empty_hub, squeeze):
    loaded = load_lpips("squeeze", squeeze, CPU)
    expected = torch.load(squeeze)["features.3.squeeze.weight"]
    assert torch.equal(loaded.network.net.slice2[1].squeeze.weight, expected)
    assert loaded.weights == squeeze and len(loaded.sha256) == 64
    assert not loaded.network.training


def test_weights_of_another_network_are_refused(squeeze):
    for load in (
        lambda: load_lpips("vgg", squeeze, CPU),
        lambda: load_lpips("alex", squeeze, CPU),
        lambda: load_inception(squeeze, CPU),
    ):
        with pytest.raises(UserError, match=r"mine\.pth does not hold"):
            load()


def test_a_given_file_must_exist(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth.*--fid_weights"):
        load_inception(tmp_path / "none.pth", CPU)


def test_a_refused_download_is_a_sentence(empty_hub, monkeypatch):
    def refuse(*_):
        raise URLError("proxy says no")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match="proxy says no"):
        load_inception(None, CPU)


def test_niqe_s_parameters_are_downloaded_once_and_checked(empty_hub, monkeypatch, niqe_parameters):
    with pytest.raises(UserError) as error:
        load_niqe(None)
    place = empty_hub / "hub" / "checkpoints" / "niqe_pris_params.npz"
    assert str(place) in str(error.value) and "--niqe_parameters" in str(error.value)
    assert "fetch https://raw.githubusercontent.com/XPixelGroup/BasicSR/8d56e3a" in str(error.value)
    asked = []

    def download(url, path, sha256):
        asked.append((url, sha256))
        place.write_bytes(niqe_parameters.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert [load_niqe(None).weights for _ in range(2)] == [place] * 2
    ((url, sha256),) = asked
    assert url.endswith("/basicsr/metrics/niqe_pris_params.npz") and len(url.split("/")[5]) == 40
    assert sha256 == "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (dict(mu_pris_param=np.zeros(36)), r"mu_pris_param is not \(1, 36\) finite numbers"),
        (dict(cov_pris_param=np.zeros((36, 35))), "cov_pris_param is not"),
        (dict(cov_pris_param=np.full((36, 36), np.nan)), "cov_pris_param is not"),
        (dict(mu_pris_param=np.array([["x"] * 36])), "could not convert"),
        (dict(mu_pris_param=np.array([{}])), "allow_pickle"),
        (dict(gaussian_window=np.full((7, 7), 1 / 49)), "gaussian_window is another"),
        (dict(gaussian_window=None), "gaussian_window is not a file"),
    ],
)
def test_what_holds_no_parameters_of_niqe_is_refused(change, fault, tmp_path, niqe_parameters):
    with np.load(niqe_parameters) as file:
        arrays = {**file, **change}
    path = tmp_path / "other.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=rf"other\.npz does not hold NIQE's parameters .*{fault}"):
        load_niqe(path)


@pytest.mark.parametrize("kind", ["text", "cut", "npy", "missing"])
def test_a_file_of_another_kind_is_refused(kind, tmp_path, niqe_parameters):
    path, whole = tmp_path / "other.npz", niqe_parameters.read_bytes()
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros((1, 36)))
    elif kind != "missing":
        path.write_bytes(b"<html>" if kind == "text" else whole[: len(whole) // 2])
    sentence = r"no file at .*; --niqe" if kind == "missing" else "does not hold NIQE's parameters"
    with pytest.raises(UserError, match=sentence):
        load_niqe(path)


def test_standard_lpips_sees_the_native_size_from_minus_1_to_1(random_hub):
    gt, enhanced = noise(0, 64, 80), noise(1, 64, 80)
    first, second = (to_tensor(image)[None] * 2 - 1 for image in (gt, enhanced))
    with torch.no_grad():
        expected = library_lpips()(first, second).item()
    network = load_lpips("alex", None, CPU).network
    distance = lpips_distance(network, gt, enhanced, "standard")
    assert distance == pytest.approx(expected, rel=1e-5) and distance > 0.001
    assert lpips_distance(network, gt, gt, "standard") == 0


def test_released_lpips_sees_1024_pixels_of_imagenet_s_mean_and_deviation(random_hub):
    gt, enhanced = noise(0, 30, 44), noise(1, 30, 44)
    sides = [
        normalize(
            to_tensor(resize(Image.fromarray(image), 1024)),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
        )[None]
        for image in (gt, enhanced)
    ]
    assert sides[0].shape[2:] == (1024, 1501)
    with torch.no_grad():
        expected = library_lpips()(*sides).item()
    network = load_lpips("alex", None, CPU).network
    distance = lpips_distance(network, gt, enhanced, "released")
    assert distance == pytest.approx(expected, rel=1e-5)


def test_features_are_pytorch_fids(random_hub):
    gt, enhanced = noise(0, 48, 60), noise(1, 48, 60) // 2
    theirs = InceptionV3().eval()
    with torch.no_grad():
        expected = torch.cat([theirs(to_tensor(image)[None])[0] for image in (gt, enhanced)])
    expected = expected.flatten(1).numpy()
    features = inception_features(load_inception(None, CPU).network, gt, enhanced)
    assert features.shape == (2, 2048)
    assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(features[0] - features[1]).max() > 0.01 * np.abs(expected).max()
