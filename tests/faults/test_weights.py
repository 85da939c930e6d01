"""Damaged, swapped and hostile weight files of every kind: a sentence that names the file."""

import copy
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file

from evaluation.networks import load_inception, load_lpips
from models.enhancer import UNetEnhancer
from models.latent_learner import LatentPromptLearner
from tests.faults.conftest import WHOLE
from training.encoder_weights import load_encoder, restore_guidance
from utils import checkpoint
from utils.errors import UserError

CPU = torch.device("cpu")


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


READERS = {
    "enhancer": lambda path: checkpoint.restore(UNetEnhancer(), path, "enhancer weights"),
    "guidance": lambda path: restore_guidance(LatentPromptLearner(512), path),
    "clip": lambda path: load_encoder("ViT-B-32", path),
    "resnet": lambda path: load_encoder("RN101", path),
    "timm": lambda path: load_encoder("timm/lcnet_035", path),
    "lpips": lambda path: load_lpips("alex", path, CPU),
    "fid": lambda path: load_inception(path, CPU),
}

FLAGS = {"clip": "--clip_weights", "resnet": "--clip_weights", "timm": "--clip_weights"}
FLAGS |= {"lpips": "--lpips_weights", "fid": "--fid_weights"}
SMALL = ("enhancer", "guidance", "timm")  # read in no time


@pytest.fixture(scope="session")
def whole(tiny_vit, tiny_resnet, random_weights):
    """A state dict that each reader accepts."""
    import timm

    hub = random_weights / "hub" / "checkpoints"
    alexnet = torch.load(next(hub.glob("alexnet*")), weights_only=True)
    features = {name: value for name, value in alexnet.items() if name.startswith("features")}
    return {
        "enhancer": UNetEnhancer().state_dict(),
        "guidance": LatentPromptLearner(512).state_dict(),
        "clip": torch.load(tiny_vit, weights_only=True),
        "resnet": torch.load(tiny_resnet, weights_only=True),
        "timm": timm.create_model("lcnet_035").state_dict(),
        "lpips": features,
        "fid": torch.load(next(hub.glob("pt_inception*")), weights_only=True),
    }


def largest(weights):
    return max(weights, key=lambda name: weights[name].numel())


def with_value(value):
    def change(weights):
        name = largest(weights)
        weights[name] = weights[name].clone()
        weights[name].view(-1)[-1] = value
        return weights

    return change


def replaced(make):
    def change(weights):
        name = largest(weights)
        weights[name] = make(weights[name])
        return weights

    return change


def itself():
    endless = []
    endless.append(endless)
    return endless


CONTENTS = {
    "nan": with_value(float("nan")),
    "inf": with_value(float("inf")),
    "a name missing": lambda weights: {k: v for k, v in weights.items() if k != largest(weights)},
    "another shape": replaced(lambda value: value[..., :-1].clone()),
    "sparse": replaced(lambda value: value.float().to_sparse()),
    "text": replaced(lambda value: "text"),
    "complex": replaced(lambda value: value.to(torch.complex64)),
    "meta": replaced(lambda value: value.to("meta")),
    "a scalar": replaced(lambda value: torch.tensor(1.0)),
    "empty": lambda weights: {},
    "of one byte": replaced(lambda value: value.to(torch.float8_e4m3fn)),
    "a list in itself": lambda weights: itself(),
    "a list": lambda weights: list(weights.values()),
    "a tensor": lambda weights: next(iter(weights.values())),
    "numbers as names": lambda weights: dict(enumerate(weights.values())),
    "nested": lambda weights: {"a": {"b": weights}},
    "another file's": lambda weights: {"somewhere.weight": torch.zeros(3)},
}


def spoil(data, how, generator):
    """Bytes of a file that is damaged in one of several ways."""
    start = generator.randrange(len(data))
    return {
        "truncated": data[:start],
        "zeros": data[: start // 2] + bytes(len(data) - start // 2),
        "only its start": data[:60],
        "text": b"hello",
        "nothing": b"",
        "a page": b"<!DOCTYPE html><html><title>404</title></html>",
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a zip": b"PK\3\4" + bytes(60),
        "an end of a zip": b"PK\5\6" + bytes(18),
    }[how]


DAMAGES = ("truncated", "zeros", "only its start", "text", "nothing", "a page", "a pointer")
DAMAGES += ("a zip", "an end of a zip")


@pytest.mark.parametrize("kind", READERS)
def test_weights_with_wrong_contents_are_refused(kind, whole, fault, tmp_path):
    weights = whole[kind]
    READERS[kind](saved(weights, tmp_path / "whole.pth"))  # the reader takes what is right
    for name in CONTENTS if WHOLE or kind in SMALL else ["nan"]:
        changed = CONTENTS[name](dict(weights))
        with fault("weights with wrong contents").case(f"{kind}: {name}"):
            path = saved(changed, tmp_path / "weights.pth")
            with pytest.raises(UserError, match=r"weights\.pth") as error:
                READERS[kind](path)
            flag = FLAGS.get(kind, "")  # of the networks that are frozen
            assert name not in ("nan", "inf") or flag in str(error.value)


@pytest.mark.parametrize("kind", READERS if WHOLE else SMALL)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_damaged_weight_files_are_refused(kind, suffix, whole, fault, count, tmp_path):
    path = tmp_path / f"whole{suffix}"
    plain = {name: value.contiguous() for name, value in whole[kind].items()}
    save_file(plain, path) if suffix == ".safetensors" else saved(plain, path)
    data, generator = path.read_bytes(), random.Random(0)
    for how in DAMAGES * count(1, 5):
        if (how, suffix) == ("zeros", ".safetensors"):
            continue  # the format has no checksum, and zeros are numbers
        damaged = tmp_path / f"damaged{suffix}"
        damaged.write_bytes(spoil(data, how, generator))
        with (
            fault("damaged weight files").case(f"{kind}{suffix}: {how}"),
            pytest.raises(UserError, match="damaged"),
        ):
            READERS[kind](damaged)


@pytest.mark.parametrize("kind", READERS if WHOLE else SMALL)
def test_no_code_in_a_weight_file_is_run(kind, whole, fault, tmp_path):
    ran = tmp_path / "ran"
    hostile = copy.copy(whole[kind])
    hostile[largest(hostile)] = Touch(ran)
    for protocol in range(2, 6):
        for zipped in (True, False):
            path = tmp_path / f"hostile{protocol}{zipped}.pth"
            torch.save(
                hostile,
                path,
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=zipped,
            )
            plain = path.with_suffix(".pkl")
            plain.write_bytes(pickle.dumps(Touch(ran), protocol=protocol))
            for file in (path, plain):
                with fault("weights that would run code").case(f"{kind}: {file.name}"):
                    with pytest.raises(UserError, match="hostile"):
                        READERS[kind](file)
                    assert not ran.exists()


def saved(contents, path):
    torch.save(contents, path)
    return path
