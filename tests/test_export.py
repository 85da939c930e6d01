import re

import numpy as np
import pytest
import skimage.data
import torch

import export
from models import load_enhancer
from models.enhancer import enhance
from tests.commands import parse
from utils.errors import UserError

SIZES = [(64, 48), (37, 53), (2, 129)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The default weights, exported in both ways from one trace, which takes long."""
    folder, trace, traced = tmp_path_factory.mktemp("exported"), export.trace, []

    def trace_once(network):
        traced.append(traced[0] if traced else trace(network))
        return traced[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(export, "trace", trace_once)
        for kind in ("torch", "onnx"):
            run("--kind", kind)
    assert sorted(path.name for path in folder.iterdir()) == ["rave.onnx", "rave.pt2"]
    return folder


def run(*arguments):
    module, args = parse(["export.py", *map(str, arguments)])
    return module.main(args)


def image_of(height, width):
    """A dark photograph (1, 3, H, W) in [0, 1], with black in it."""
    pixels = skimage.data.astronaut()[80 : 80 + height, 60 : 60 + width] // 3
    pixels[:1, :5] = 0
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def expected(image):
    with torch.no_grad():
        return enhance(image, load_enhancer(device="cpu")(image)).numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_onnx_gives_the_same(folder, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "rave.onnx", options, providers=["CPUExecutionProvider"]
    )
    image = image_of(*size)
    (found,) = session.run(["enhanced"], {"image": image.numpy()})
    assert found.shape == image.shape
    assert np.abs(found - expected(image)).max() <= 1e-4


@pytest.fixture(scope="module")
def program(folder):
    return torch.export.load(folder / "rave.pt2").module()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torch_gives_the_same(program, size):
    image = image_of(*size)
    with torch.no_grad():
        found = program(image).numpy()
    assert found.shape == image.shape
    assert np.abs(found - expected(image)).max() <= 1e-5


def test_what_cannot_be_written_is_refused_before(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=re.escape("should end in .onnx")):
        run("--kind", "onnx", "-o", tmp_path / "rave.pt2")
    with pytest.raises(UserError, match="no checkpoint at nothing"):
        run("--kind", "torch", "-o", tmp_path / "a.pt2", "-c", "nothing")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript; .*requirements-dev"):
        run("--kind", "onnx", "-o", tmp_path / "rave.onnx")
    assert not list(tmp_path.iterdir())
