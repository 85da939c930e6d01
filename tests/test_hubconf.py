"""torch.hub loads the network as users do: from anywhere, with nothing but what hubconf names."""

import subprocess
import sys

import numpy as np

from models import load_enhancer
from tests.commands import ROOT

PHOTO = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
# Of requirements.txt, what the network does not need; huggingface_hub would make a cache, too.
NEEDLESS = ("open_clip", "timm", "torchvision", "huggingface_hub", "scipy", "skimage", "matplotlib")
CODE = f"""
import sys
sys.modules.update(dict.fromkeys({NEEDLESS}))
import numpy, torch
photo = numpy.arange(5 * 7 * 3, dtype="uint8").reshape(5, 7, 3)
for how in ({{}}, {{"name_or_path": "rave_default", "device": "cpu"}}):
    network = torch.hub.load({str(ROOT)!r}, "rave", source="local", **how)
    print(network.enhance(photo).tolist())
"""


def test_torch_hub_loads_the_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = load_enhancer(device="cpu").enhance(PHOTO)
    assert done.stdout == 2 * f"{expected.tolist()}\n"
    assert not done.stderr
