"""The benchmarks that need what a test has not, a GPU or quiet cores, at least start and end."""

import re

import pytest
import torch

from benchmarks import accelerator, scaling
from tests.commands import parse


@pytest.fixture
def tiny(tiny_vit, tiny_resnet):
    """Arguments that make everything small."""
    return [
        *("--device", "cpu", "--clip_weights", str(tiny_vit)),
        *("--identity_weights", str(tiny_resnet), "--modes", "fp32", "bf16"),
        *("--repeats", "1", "--warm_up", "0", "--image_size", "16", "--batch_size", "1"),
        *("--prompt_batch_size", "2", "--megapixels", "0.001", "--texts", "20"),
        *("--parity_size", "16"),
    ]


def test_every_figure_of_a_device_is_printed(tiny, capsys):
    accelerator.main(accelerator.parse_arguments(tiny))
    said = capsys.readouterr().out
    assert len(re.findall(r"\d\.\d{3} s", said)) == 2 * 5 + 2 + 2
    assert (
        len(re.findall(r"\| (RAVE|CLIP-LIT|CLIP-LIT-Latent) \| 0.0e\+00 \| 0.0e\+00 \|", said)) == 3
    )
    assert re.search(r"20 texts in \d+\.\d s", said)


def test_what_fails_is_said_and_does_not_lose_the_rest(tiny, capsys, monkeypatch):
    def step(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(accelerator, "enhance_photo", step)
    tiny += ["--sections", "photographs", "vocabulary"]
    with pytest.raises(SystemExit, match="1"):
        accelerator.main(accelerator.parse_arguments(tiny))
    said = capsys.readouterr().out
    assert said.count("| out of memory") == 2 and "20 texts in" in said


def test_a_device_that_computes_otherwise_is_found(tiny, capsys, monkeypatch):
    monkeypatch.setattr(accelerator, "STEPS_COMPARED", 1)
    gradients = iter([1.0, 1.0, 1.001, 1.0, 1.0, 1.0])  # CLIP-LIT's is not the CPU's
    monkeypatch.setattr(accelerator, "gradients_of", lambda _: torch.tensor([next(gradients)]))
    with pytest.raises(SystemExit, match="1"):
        accelerator.main(accelerator.parse_arguments([*tiny, "--sections", "parity"]))
    assert "failed: CLIP-LIT differs" in capsys.readouterr().out


def test_the_scripts_take_what_scaling_asks_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "random_model", lambda _: torch.nn.Linear(1, 1))
    monkeypatch.setattr(scaling, "save_random_weights", lambda folder: (folder / "a", folder / "b"))
    monkeypatch.setattr("sys.argv", ["scaling", "--megapixels", "0.001", "--image_size", "16"])
    args = scaling.parse_arguments()
    for kind, make in scaling.ALL_WORK.items():
        (tmp_path / kind).mkdir()
        work = make(tmp_path / kind, args)
        few, more = work.amounts
        assert more > few >= 1
        for command in work.commands:
            module, read = parse(command)
            assert f"{module.__name__}.py" == command[0]
            assert read.device == "cpu"


def test_scaling_takes_the_difference_of_two_amounts_of_work(monkeypatch, capsys):
    work = scaling.Work("photo", (2, 10), (["few"], ["more"]))
    monkeypatch.setattr(scaling, "ALL_WORK", {"inference": lambda *_: work})
    taken = {("few", 1): 14.0, ("more", 1): 30.0, ("few", 2): 15.0, ("more", 2): 23.0}

    def seconds(command, processes):
        wall = taken[command[0], processes]
        return wall, wall * processes

    monkeypatch.setattr(scaling, "seconds", seconds)
    monkeypatch.setattr("sys.argv", ["scaling", "--work", "inference", "--repeats", "2"])
    scaling.main(scaling.parse_arguments())
    assert "| inference | 2.00 s/photo | 1.00 s/photo | 2.00 | 2.00 |" in capsys.readouterr().out
