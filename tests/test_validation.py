"""Validation while training: the score of inference, and not a bit of difference in the weights."""

import functools
import shutil
import statistics
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import train_rave
from data.squares import resized
from models import load_enhancer
from models.enhancer import new_enhancer
from tests.runs import final, renamed, rows, same
from training.origin import Origin
from training.validation import Validation, find_pairs
from utils.checkpoint import load_weights, save_weights
from utils.errors import UserError, WorkError
from utils.metrics import fidelity

LOADED = functools.cache(train_rave.load_encoders)


@pytest.fixture(autouse=True)
def encoders_loaded_once(monkeypatch):
    monkeypatch.setattr(train_rave, "load_encoders", LOADED)


@pytest.fixture
def held_out(training_folders, tmp_path):
    """A copy of the training folders, to change."""
    return shutil.copytree(training_folders, tmp_path / "held_out")


@pytest.fixture
def flags(held_out):
    return [
        *(
            "--val_input_path",
            str(held_out / "backlit"),
            "--val_gt_path",
            str(held_out / "well_lit"),
        ),
        *("--val_iter", "2", "--val_size", "24"),
    ]


def run(arguments):
    return train_rave.main(train_rave.parse_arguments([*arguments, "--max_iters", "6"]))


def arguments_for(held_out, **changed):
    paths = dict(val_input_path=str(held_out / "backlit"), val_gt_path=str(held_out / "well_lit"))
    return Namespace(**paths, val_iter=2, val_size=24, cache="auto", device="cpu", **changed)


def validation(held_out, folder):
    args = arguments_for(held_out)
    return Validation(find_pairs(args), args, folder, Origin(folder, resumed=True))


def test_weights_are_equal_to_the_last_bit_with_it_and_without_it(tiny_run, flags, tmp_path):
    run(tiny_run)
    run([*renamed(tiny_run, "validated"), *flags])
    assert same(final(tmp_path), final(tmp_path, "validated"))
    without, with_it = (rows(tmp_path / name) for name in ("run", "validated"))
    for name in ("val_psnr", "val_ssim"):
        assert {row.pop(name) for row in without} == {""}
        assert all(float(row.pop(name)) > 0 for row in with_it[::2])
    assert (without[0], without[2]) == (with_it[0], with_it[2])
    files = [
        {path.name for path in (tmp_path / name / "snapshots_model").iterdir()}
        for name in ("run", "validated")
    ]
    assert files[1] - files[0] == {"best_val.pth"} and not files[0] - files[1]


def test_the_score_is_that_of_inference(held_out, tmp_path):
    torch.manual_seed(1)
    network = new_enhancer(0.5)
    save_weights(network, tmp_path / "weights.pth")
    scores = []
    for number in range(4):
        image, gt = (
            resized(np.asarray(Image.open(held_out / kind / f"{number}.png")), 24).transpose(
                1, 2, 0
            )
            for kind in ("backlit", "well_lit")
        )
        enhanced = load_enhancer(tmp_path / "weights.pth", "cpu").enhance(image)
        scores.append(fidelity(gt, enhanced, "standard"))
    found = validation(held_out, tmp_path).score(network.state_dict())
    assert found == {
        f"val_{name}": pytest.approx(statistics.fmean(score[name] for score in scores), abs=1e-6)
        for name in ("psnr", "ssim")
    }


def test_it_pads_by_reflection_though_training_pads_with_zeros(held_out, tmp_path, monkeypatch):
    checked = validation(held_out, tmp_path)
    torch.manual_seed(1)
    weights = new_enhancer(0.5).state_dict()
    before = checked.score(weights)
    for module in checked._network.modules():
        if getattr(module, "padding_mode", None) == "reflect" and module.bias is not None:
            module.padding_mode = "zeros"
    assert checked.score(weights) != before


def test_a_score_is_due_once_in_so_many_iterations(held_out, tmp_path, monkeypatch):
    checked = validation(held_out, tmp_path)
    checked.every = 200
    monkeypatch.setattr(checked, "score", lambda _: {"val_psnr": 1.0, "val_ssim": 1.0})
    network = new_enhancer()
    for display in (20, 30, 150, 200, 500):
        due = [
            n for n in range(display, 3001, display) if checked.score_if_due(n, display, network)
        ]
        multiples = [-(-n // display) * display for n in range(200, 3001, 200)]
        assert due == sorted({n for n in multiples if n <= 3000})


def test_the_best_weights_by_validation_are_kept(held_out, tmp_path, monkeypatch):
    checked = validation(held_out, tmp_path)
    networks = [new_enhancer(1.0 + number) for number in range(3)]
    best = tmp_path / "snapshots_model" / "best_val.pth"
    for number, (psnr, kept) in enumerate([(10.0, 0), (12.0, 1), (11.0, 1)]):
        monkeypatch.setattr(checked, "score", lambda _, p=psnr: {"val_psnr": p, "val_ssim": 0.5})
        checked.score_if_due(2 * number + 2, 2, networks[number])
        assert same(load_weights(best), networks[kept].state_dict())
    assert Origin(tmp_path, resumed=True).best_validation["iteration"] == 4
    # A resumed run knows the best so far of these photographs, and begins anew with others.
    again = validation(held_out, tmp_path)
    monkeypatch.setattr(again, "score", lambda _: {"val_psnr": 11.5, "val_ssim": 0.5})
    again.score_if_due(8, 2, networks[2])
    assert same(load_weights(best), networks[1].state_dict())
    (held_out / "backlit" / "3.png").unlink()
    other = validation(held_out, tmp_path)
    monkeypatch.setattr(other, "score", lambda _: {"val_psnr": 5.0, "val_ssim": 0.5})
    other.score_if_due(8, 2, networks[2])
    assert same(load_weights(best), networks[2].state_dict())


def test_a_run_that_ends_before_a_log_line_is_scored(tiny_run, flags, tmp_path):
    long = [*tiny_run, *flags, "--display_iter", "20", "--val_iter", "2"]
    train_rave.main(train_rave.parse_arguments([*long, "--max_iters", "5"]))
    *_, last = rows(tmp_path / "run")
    assert (last["stage"], last["iteration"]) == ("round", "5") and float(last["val_psnr"]) > 0
    # With a higher limit it goes on as if it had always had that:
    train_rave.main(train_rave.parse_arguments([*long, "--max_iters", "25", "--resume"]))
    lines = rows(tmp_path / "run")
    assert [line["iteration"] for line in lines] == ["3", "23"]
    assert all(float(line["val_psnr"]) > 0 for line in lines)


def test_it_is_free_on_resume(tiny_run, flags, tmp_path):
    run(tiny_run)
    whole = final(tmp_path)
    other = renamed(tiny_run, "other")
    train_rave.main(train_rave.parse_arguments([*other, "--max_iters", "2"]))
    assert run([*other, *flags, "--keep", "1", "--resume"]) == 0
    assert same(final(tmp_path, "other"), whole)
    assert [bool(row["val_psnr"]) for row in rows(tmp_path / "other")][0::2] == [False, True]
    assert len(list((tmp_path / "other" / "snapshots_model").glob("iter_*.pth"))) == 1


def test_photographs_without_a_partner_or_unreadable_are_left_out(
    tiny_run, flags, held_out, tmp_path, capsys
):
    (held_out / "backlit" / "9.png").write_bytes(b"no photograph")
    shutil.copy(held_out / "well_lit" / "0.png", held_out / "well_lit" / "9.png")
    shutil.copy(held_out / "well_lit" / "0.png", held_out / "well_lit" / "alone.png")
    assert run([*tiny_run, *flags]) == 1
    told = capsys.readouterr().err
    assert "alone.png" in told and "9.png" in told and "1 photograph left out" in told
    for path in (held_out / "backlit").iterdir():
        path.write_bytes(b"no photograph")
    with pytest.raises(UserError):
        run([*renamed(tiny_run, "other"), *flags])


def test_mistakes_are_sentences_before_any_photograph_is_read(tiny_run, flags, tmp_path):
    for wrong, sentence in (
        (flags[:2], "both --val_input_path and --val_gt_path"),
        (flags[2:], "both --val_input_path and --val_gt_path"),
        ([*flags, "--val_gt_path", str(tmp_path / "none")], "no file or folder"),
    ):
        with pytest.raises(UserError, match=sentence) as end:
            run([*tiny_run, *wrong])
        assert end.value.status == 2
    assert not list(tmp_path.glob("**/run.json"))


def test_weights_without_a_finite_light_map_are_a_sentence(held_out, tmp_path):
    network = new_enhancer()
    network.cond1.weight.data.fill_(float("nan"))
    with pytest.raises(WorkError, match="no finite light map"):
        validation(held_out, tmp_path).score(network.state_dict())
