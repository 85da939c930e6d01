"""Frozen networks whose weights are not finite: each loader must refuse them by name."""

import math
import random
from pathlib import Path

import pytest
import timm
import torch
from pytorch_fid.inception import FID_WEIGHTS_URL
from torchvision import models

from evaluation.networks import load_inception, load_lpips
from training.encoder_weights import load_encoder
from utils.errors import UserError

CPU = torch.device("cpu")
LITE0 = "tf_efficientnet_lite0"


def spoilt(weights, chance):
    """Weights with one number that is not finite."""
    name = chance.choice([name for name, value in weights.items() if value.is_floating_point()])
    value = weights[name].clone()
    bad = chance.choice([math.nan, math.inf, -math.inf])
    value.view(-1)[chance.randrange(value.numel())] = bad
    return {**weights, name: value}, f"{name} has {bad}"


@pytest.fixture
def networks(tiny_vit, tiny_resnet, random_weights):
    """The weights of each kind of network, how they are loaded, and the option that names them."""
    fid = random_weights / "hub" / "checkpoints" / Path(FID_WEIGHTS_URL).name
    return {
        "CLIP ViT": (
            torch.load(tiny_vit),
            lambda path: load_encoder("ViT-B-32", path),
            "--clip_weights",
        ),
        "CLIP ResNet": (
            torch.load(tiny_resnet),
            lambda path: load_encoder("RN101", path, CPU, "--identity_weights"),
            "--identity_weights",
        ),
        "timm": (
            timm.create_model(LITE0).state_dict(),
            lambda path: load_encoder(f"timm/{LITE0}", path),
            "--clip_weights",
        ),
        "LPIPS": (
            models.squeezenet1_1().state_dict(),
            lambda path: load_lpips("squeeze", path, CPU),
            "--lpips_weights",
        ),
        "Inception": (torch.load(fid), lambda path: load_inception(path, CPU), "--fid_weights"),
    }


def test_weights_that_are_not_finite(networks, fault, count, tmp_path):
    chance = random.Random(0)
    kind = fault("weights of a frozen network are not finite")
    for name, (weights, load, flag) in networks.items():
        for _ in range(count(1, 12)):
            other, what = spoilt(weights, chance)
            torch.save(other, tmp_path / "weights.pth")
            with kind.case(f"{name}: {what}"):
                with pytest.raises(UserError, match="not finite") as error:
                    load(tmp_path / "weights.pth")
                assert str(tmp_path / "weights.pth") in str(error.value)
                assert flag in str(error.value) and error.value.status == 2
