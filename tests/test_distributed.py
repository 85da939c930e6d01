"""Runs that several processes share: the same mathematics, and no process left when one fails."""

import contextlib

import pytest
import torch

from tests.forks import Forks
from tests.runs import final, renamed, rows

MODES = ("rave", "clip-lit", "clip-lit-latent")
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def forks(tmp_path_factory, tiny_vit, tiny_resnet):
    folder = tmp_path_factory.mktemp("said")
    with contextlib.closing(Forks(folder, str(tiny_vit), str(tiny_resnet))) as forks:
        yield forks


@pytest.fixture
def command(tiny_run):
    """Gives a training script and a run through all its stages, fast enough to show a difference.

    Batches of 3 from 4 photographs: the last one of an epoch has one image, and no rank but the
    last has any of it.
    """

    def of(mode):
        common = [*tiny_run, "--train_batch_size", "3", "--train_lr", "0.001", "--max_iters", "8"]
        common += ["--weight_decay", "0", "--clip_grad_norm", "5"]
        if mode == "rave":
            return "train_rave", [*common, "--ema_decay", "0.5", "--paired_residual"]
        return "train", [
            *common,
            *("--mode", mode, "--thre_train", "1e9", "--thre_prompt", "1e9"),
            *("--num_clip_pretrained_iters", "3", "--prompt_display_iter", "2"),
            *("--prompt_batch_size", "3", "--prompt_lr", "0.001"),
        ]

    return of


@pytest.fixture
def alone(forks, command, tmp_path):
    """Gives a run's folder after one process has gone through it."""

    def run(mode):
        script, arguments = command(mode)
        status, said = forks.run(script, renamed(arguments, "alone"))
        assert status == 0, said
        return tmp_path / "alone"

    return run


def weights(tmp_path, name, mode):
    kinds = ["model"] if mode == "rave" else ["model", "guidance"]
    return {
        (kind, key): value for kind in kinds for key, value in final(tmp_path, name, kind).items()
    }


def differ_by(one, other):
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_several_processes_train_as_one_does(mode, ranks, forks, command, alone, tmp_path):
    alone(mode)
    script, arguments = command(mode)
    statuses, said = forks.run_ranks(ranks, script, arguments)
    assert statuses == [0] * ranks, said
    assert said.count("iterations done") == 1  # rank 0 speaks for all
    expected, found = (weights(tmp_path, name, mode) for name in ("alone", "run"))
    assert differ_by(expected, found) <= ROUNDING
    for line, other in zip(rows(tmp_path / "alone"), rows(tmp_path / "run"), strict=True):
        for name in ("stage", "round", "stage_iteration", "iteration"):
            assert line[name] == other[name]
        for name in ("loss", "guidance", "identity", "psnr"):
            assert line[name] == other[name] == "" or float(line[name]) == pytest.approx(
                float(other[name]), rel=1e-4
            )
    state, other = (torch.load(tmp_path / name / "last.pt") for name in ("alone", "run"))
    assert state["schedule"]["restarts"] == other["schedule"]["restarts"]


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_in_parts_is_the_whole_batch(mode, forks, command, alone, tmp_path):
    alone(mode)
    script, arguments = command(mode)
    status, said = forks.run(script, [*arguments, "--accumulate", "2"])
    assert status == 0, said
    assert differ_by(weights(tmp_path, "alone", mode), weights(tmp_path, "run", mode)) <= ROUNDING


def test_a_run_goes_on_with_another_number_of_processes(forks, command, alone, tmp_path):
    alone("clip-lit-latent")
    script, arguments = command("clip-lit-latent")
    for ranks, limit in ((3, "3"), (1, "5"), (2, "8")):
        given = [*arguments, "--max_iters", limit, *(["--resume"] if limit != "3" else [])]
        statuses, said = forks.run_ranks(ranks, script, given)
        assert statuses == [0] * ranks, said
    expected, found = (weights(tmp_path, n, "clip-lit-latent") for n in ("alone", "run"))
    assert differ_by(expected, found) <= ROUNDING
