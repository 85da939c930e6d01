import pytest
import torch
from safetensors.torch import load_file

from pretrained_models.average import main, parse_arguments
from utils.checkpoint import load_weights
from utils.errors import UserError


def test_average_of_two_files(tmp_path):
    for name, value, prefix in (("a", 1.0, "module."), ("b", 4.0, "")):
        torch.save({f"{prefix}w": torch.full((2, 3), value)}, tmp_path / name)
    paths = [str(tmp_path / name) for name in ("mean", "a", "b")]
    main(parse_arguments(paths))
    assert torch.equal(load_weights(paths[0])["w"], torch.full((2, 3), 2.5))
    assert list(torch.load(paths[0], weights_only=True)) == ["module.w"]
    main(parse_arguments([str(tmp_path / "mean.safetensors"), *paths[1:]]))
    assert torch.equal(load_file(tmp_path / "mean.safetensors")["w"], torch.full((2, 3), 2.5))


def test_other_shapes_have_no_average(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "a")
    torch.save({"w": torch.zeros(3)}, tmp_path / "b")
    with pytest.raises(UserError, match="one architecture"):
        main(parse_arguments([str(tmp_path / name) for name in ("mean", "a", "b")]))
    assert not (tmp_path / "mean").exists()
