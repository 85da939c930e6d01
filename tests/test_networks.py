from urllib.error import URLError

import pytest
import torch
from torchvision import models

from evaluation.networks import LPIPS_BACKBONES, load_inception, load_lpips
from utils.checkpoint import save
from utils.errors import UserError

CPU = torch.device("cpu")


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
    backbone = load_lpips("squeeze", None, CPU)
    assert asked == [(LPIPS_BACKBONES["squeeze"], "b8a52dc0")]
    assert backbone.weights.parent == empty_hub / "hub" / "checkpoints"


def test_given_weights_are_the_ones_used(empty_hub, squeeze):
    backbone = load_lpips("squeeze", squeeze, CPU)
    expected = torch.load(squeeze)["features.3.squeeze.weight"]
    assert torch.equal(backbone.network.net.slice2[1].squeeze.weight, expected)
    assert backbone.weights == squeeze and len(backbone.sha256) == 64
    assert not backbone.network.training


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
