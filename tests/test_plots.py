import numpy as np
import pytest
from PIL import Image

from training.plots import save_histogram
from utils.errors import UserError


def test_histogram_is_a_picture(tmp_path):
    path = tmp_path / "run" / "residual.png"
    save_histogram(path, [-0.2, -0.1, -0.15], [0.1, 0.2], "a score", 0.17, "an encoder")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape == (480, 840, 3)
    drawn = set(map(tuple, pixels.reshape(-1, 3)[::7].tolist()))
    assert len(drawn) > 10
    assert [file.name for file in path.parent.iterdir()] == ["residual.png"]


def test_one_value_everywhere_is_drawn_too(tmp_path):
    save_histogram(tmp_path / "residual.png", [0.0], [0.0], "a score")
    assert Image.open(tmp_path / "residual.png").size == (840, 480)


def test_unwritable_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a folder"):
        save_histogram(tmp_path / "file" / "residual.png", [0.0], [1.0], "a score", 0.5)
