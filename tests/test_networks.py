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
