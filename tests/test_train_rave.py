"""RAVE's training script, run as a user runs it, on tiny images and the tiny CLIP."""

import csv
import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_rave
from data import photo_store
from models import criteria
from models.enhancer import UNetEnhancer
from tests.forks import members
from tests.runs import final, renamed, rows, same, send_signal, signals_answered
from training import residual
from utils.checkpoint import fingerprint, fingerprint_file, load_weights, save_weights
from utils.errors import UserError, WorkError
from utils.signals import Interrupted

ROOT = train_rave.__file__.rsplit("/", 1)[0]
ITERATIONS = 6
FEW_WORDS = [f"word {number}" for number in range(50)]
LOADED = functools.cache(train_rave.load_encoders)


@pytest.fixture(autouse=True)
def encoders_loaded_once(monkeypatch):
    """Loading takes longer than the runs."""
    monkeypatch.setattr(train_rave, "load_encoders", LOADED)


@pytest.fixture
def arguments(tiny_run):
    """A run of six iterations, three of them warm-up, that takes a second or two."""
    return [*tiny_run, "--max_iters", str(ITERATIONS)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Run once without interruption; return the folder above the run's."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def once(arguments):
        if not (folder / "whole").exists():
            run([*renamed(arguments, "whole"), "--save_dir", str(folder)])
        return folder

    return once


def run(arguments):
    return train_rave.main(train_rave.parse_arguments(arguments))


def test_defaults_are_the_published_setting():
    args = train_rave.parse_arguments(["-b", "a", "-r", "b", "--exp_name", "c"])
    published = {
        "train_lr": 2e-5,
        "weight_decay": 1e-3,
        "train_batch_size": 8,
        "num_epochs": 2000,
        "num_reconstruction_iters": 1000,
        "round_iters": 2100,
        "thre_train": 90,
        "display_iter": 20,
        "image_size": 512,
        "guidance_encoder": "ViT-B-32",
        "identity_encoder": "RN101",
        "remove_first_n_tokens": 0,
        "identity_scale": 1,
        "ema_decay": 0,
        "clip_grad_norm": 0,
        "start_light_map": None,
    }
    assert {name: getattr(args, name) for name in published} == published


def test_a_run_leaves_what_it_should(arguments, tmp_path):
    assert run(arguments) == 0
    folder = tmp_path / "run"
    assert len(list((folder / "snapshots_model").glob("best_model_round[01].pth"))) == 2
    assert (folder / "samples" / "iter_1.png").is_file()
    log = rows(folder)
    assert [(row["stage"], int(row["iteration"])) for row in log] == [
        *(("warm-up", 2), ("warm-up", 3)),
        ("round", 5),
    ]
    assert all(
        float(row["loss"]) == pytest.approx(float(row["guidance"]) + float(row["identity"]))
        for row in log[2:]
    )
    residual = torch.load(folder / "residual.pt", weights_only=True)
    assert residual["r"].norm().item() == pytest.approx(1, abs=1e-5)
    assert residual["t"] == pytest.approx(float(residual["p"] @ residual["r"]), abs=1e-5)
    assert (residual["backlit_images"], residual["well_lit_images"]) == (4, 4)
    raw = torch.load(folder / "snapshots_model" / "final.pth", weights_only=True)
    assert len(raw) == 30 and all(key.startswith("module.") for key in raw)
    safe = load_file(folder / "snapshots_model" / "final.safetensors")
    assert fingerprint(safe) == fingerprint_file(folder / "snapshots_model" / "final.pth")


def test_an_image_that_equals_its_partner_has_no_guidance_left(tiny_run, tmp_path):
    backlit, well_lit = (tiny_run[tiny_run.index(flag) + 1] for flag in ("-b", "-r"))
    alike = shutil.copytree(well_lit, tmp_path / "alike")
    for path in alike.iterdir():
        path.rename(alike / f"foreign_{path.name}")  # so that the residual vector is not 0
    shutil.copytree(backlit, alike, dirs_exist_ok=True)
    extra = ["--num_reconstruction_iters", "0", "--max_iters", "1", "--train_lr", "0"]
    for name, options in (("towards", ["--paired_guidance"]), ("along", [])):
        run([*renamed(tiny_run, name), *extra, *options, "-r", str(alike)])
    towards, along = (float(rows(tmp_path / name)[0]["guidance"]) for name in ("towards", "along"))
    assert towards < along / 1000 and along > 1  # the light map is all but 1


def test_a_killed_run_goes_on_to_the_very_same_weights(arguments, forks, tmp_path):
    extra = ["--ema_decay", "0.9", "--lr_cosine", "--paired_guidance"]
    assert forks.run("train_rave", [*renamed(arguments, "whole"), *extra])[0] == 0
    last = tmp_path / "run" / "last.pt"
    last.parent.mkdir()
    pid = forks.start("train_rave", [*arguments, *extra, "--resume"])
    while not last.exists() and members(pid):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert forks.wait(pid) == -signal.SIGKILL and last.exists(), forks.said.read_text()
    done = torch.load(last, weights_only=True)["schedule"]["iteration"]
    assert 0 < done < ITERATIONS
    assert forks.run("train_rave", [*arguments, *extra, "--resume"])[0] == 0
    assert same(final(tmp_path), final(tmp_path, "whole"))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_compiling_changes_neither_names_nor_results(arguments, tmp_path, monkeypatch, undisturbed):
    compile_module, compiled = torch.nn.Module.compile, []

    def compile_quickly(module, **options):
        compiled.append(module)
        compile_module(module, backend="aot_eager", **options)  # all but the machine code

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    run([*arguments, "--compile"])
    assert len(compiled) == 1
    plain = final(undisturbed(arguments), "whole")
    result = final(tmp_path)
    assert result.keys() == plain.keys()
    for name, value in result.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-6)


def test_without_a_compiler_compiling_is_an_error(arguments, monkeypatch):
    monkeypatch.setattr("training.setup.CPP_COMPILERS", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        run([*arguments, "--compile"])


@pytest.mark.parametrize(
    ("stage", "number", "method"),
    [
        ("warm-up", signal.SIGINT, "step"),
        ("warm-up", signal.SIGTERM, "record"),
        ("round", signal.SIGTERM, "step"),
        ("round", signal.SIGINT, "record"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    arguments, tmp_path, monkeypatch, undisturbed, stage, number, method
):
    whole = undisturbed(arguments)
    with monkeypatch.context() as patched, signals_answered():
        send_signal(patched, method, stage, 2, number)
        with pytest.raises(Interrupted, match=str(int(number))) as end:
            run(arguments)
    # A step in progress is given up; one that has changed the weights is finished.
    done = 1 if method == "step" else 2
    assert f"iteration {done} of {stage}" in end.value.remedy
    run([*arguments, "--resume"])
    assert same(final(tmp_path), final(whole, "whole"))
    assert rows(tmp_path / "run") == rows(whole / "whole")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    arguments, tmp_path, monkeypatch, undisturbed
):
    real = criteria.residual_guidance_loss
    calls = []

    def poisoned(*positional):
        calls.append(0)
        return real(*positional) * (float("nan") if len(calls) == 3 else 1)

    with monkeypatch.context() as patched:
        patched.setattr(criteria, "residual_guidance_loss", poisoned)
        with pytest.raises(WorkError, match="the loss is nan at iteration 3 of round"):
            run(arguments)
    best = load_weights(tmp_path / "run" / "snapshots_model" / "best_model_round1.pth")
    assert all(value.isfinite().all() for value in best.values())
    run([*arguments, "--resume"])
    assert same(final(tmp_path), final(undisturbed(arguments), "whole"))


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_a_raised_limit_goes_on_as_if_it_had_always_been_that(
    arguments, tmp_path, undisturbed, limit
):
    whole = undisturbed(arguments)
    run([*arguments, "--max_iters", str(limit)])
    run([*arguments, "--resume"])
    assert same(final(tmp_path), final(whole, "whole"))
    assert rows(tmp_path / "run") == rows(whole / "whole")


def test_resuming_a_finished_run_changes_nothing(arguments, tmp_path):
    arguments = [*arguments, "--train_lr", "0.01", "--max_iters", "8"]
    run(arguments)
    before = final(tmp_path)
    run([*arguments, "--resume"])
    assert same(before, final(tmp_path))


def test_mistakes_are_sentences(arguments, tmp_path):
    run([*arguments, "--max_iters", "2"])
    with pytest.raises(UserError, match="--resume"):
        run(arguments)
    with pytest.raises(UserError, match="--train_lr was 2e-05"):
        run([*arguments, "--resume", "--train_lr", "1"])
    with pytest.raises(UserError, match="no run to resume"):
        run([*renamed(arguments, "other"), "--resume"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no photographs"):
        run([*renamed(arguments, "other"), "-b", str(empty)])
    args = train_rave.parse_arguments(
        [
            *renamed(arguments, "other"),
            *("--guidance_encoder", "timm/tf_efficientnet_lite0", "--remove_first_n_tokens", "3"),
        ]
    )
    args.clip_weights = None
    with pytest.raises(UserError, match="text"):
        train_rave.main(args)


def test_pretrained_weights_leave_no_warm_up_unless_ignored(arguments, tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    save_weights(UNetEnhancer(), weights)
    short = [*arguments, "--max_iters", "1", "--unet_pretrain_dir", str(weights)]
    run(short)
    assert "without a warm-up" in capsys.readouterr().out
    assert [row["stage"] for row in rows(tmp_path / "run")] == ["round"]
    run([*renamed(short, "other"), "--load_pretrain_unet", "False"])
    assert "is ignored" in capsys.readouterr().out
    assert [row["stage"] for row in rows(tmp_path / "other")] == ["warm-up"]


@pytest.fixture
def few_words(tmp_path, monkeypatch):
    """A vocabulary that is embedded at once, and a cache of its own."""
    monkeypatch.setattr("models.vocabulary.vocabulary_texts", lambda: FEW_WORDS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_interpret_only_trains_nothing(arguments, tmp_path, few_words):
    run([*arguments, "--interpret_only", "--remove_first_n_tokens", "5"])
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "residual.pt",
        "residual.png",
        "residual_tokens.csv",
        "run.lock",
    }
    table = list(csv.DictReader((folder / "residual_tokens.csv").open(encoding="utf-8")))
    assert {(row["vector"], row["end"]) for row in table} == {
        (vector, end) for vector in ("before", "after") for end in ("nearest", "farthest")
    }
    run([*arguments, "--max_iters", "1"])  # in the same folder, whose table must fit its vector
    table = list(csv.DictReader((folder / "residual_tokens.csv").open(encoding="utf-8")))
    assert {row["vector"] for row in table} == {"before"}


def test_embeddings_are_kept_with_photographs_on_disk(arguments, tmp_path, monkeypatch, few_words):
    batches = []
    real = residual.embed_photos

    def counting(encoder, images):
        batches.append(sum(map(len, images := list(images))))
        return real(encoder, images)

    monkeypatch.setattr(residual, "embed_photos", counting)
    vectors = []
    for name, cache in (("a", "memory"), ("b", "disk"), ("c", "disk")):
        run([*renamed(arguments, name), "--cache", cache, "--interpret_only"])
        vectors.append(torch.load(tmp_path / name / "residual.pt")["r"])
        assert batches == [4, 4] * {"a": 1, "b": 2, "c": 2}[name]
    assert torch.equal(vectors[0], vectors[1]) and torch.equal(vectors[1], vectors[2])


def test_interpreting_needs_no_identity_encoder(arguments, tmp_path, few_words):
    run([*arguments, "--interpret_only", "--identity_weights", str(tmp_path / "missing.pt")])
    assert (tmp_path / "run" / "residual_tokens.csv").is_file()


def test_photographs_left_out_show_in_the_exit_status(
    arguments, training_folders, tmp_path, capsys
):
    folders = shutil.copytree(training_folders, tmp_path / "photos")
    (folders / "well_lit" / "9.png").write_bytes(b"no photograph")
    arguments = [*arguments, "-b", str(folders / "backlit"), "-r", str(folders / "well_lit")]
    assert run([*arguments, "--max_iters", "1"]) == 1
    assert "1 photograph left out" in capsys.readouterr().err
    (folders / "well_lit" / "9.png").unlink()
    assert run([*arguments, "--max_iters", "2", "--resume"]) == 0
    (folders / "backlit" / "9.png").write_bytes(b"no photograph")
    assert run([*renamed(arguments, "other"), "--interpret_only"]) == 1
    assert run([*renamed(arguments, "third"), "--max_iters", "1"]) == 1
    assert run([*renamed(arguments, "third"), "--max_iters", "2", "--resume"]) == 1


@pytest.mark.parametrize("mended", [True, False])
def test_a_photograph_that_becomes_readable_or_unreadable_is_noticed(
    arguments, training_folders, tmp_path, mended
):
    folders = shutil.copytree(training_folders, tmp_path / "photos")
    photo = folders / "backlit" / "2.png"
    whole = photo.read_bytes()
    broken = bytes(len(whole))  # of the same size
    photo.write_bytes(broken if mended else whole)
    arguments = [*arguments, "-b", str(folders / "backlit")]
    run([*arguments, "--max_iters", "1"])
    photo.write_bytes(whole if mended else broken)
    with pytest.raises(UserError, match=r"1 photograph of --backlit_images_path.*as 2\.png") as end:
        run([*arguments, "--resume"])
    assert end.value.status == 2
    photo.write_bytes(broken if mended else whole)
    assert run([*arguments, "--resume"]) == int(mended)


def test_an_unreadable_photograph_may_go_and_come_back(arguments, training_folders, tmp_path):
    folders = shutil.copytree(training_folders, tmp_path / "photos")
    broken = folders / "backlit" / "9.png"
    broken.write_bytes(b"no photograph")
    arguments = [*arguments, "-b", str(folders / "backlit")]
    assert run([*arguments, "--max_iters", "1"]) == 1
    broken.unlink()
    assert run([*arguments, "--max_iters", "2", "--resume"]) == 0
    assert run([*arguments, "--max_iters", "3", "--resume"]) == 0
    broken.write_bytes(b"no photograph")
    assert run([*arguments, "--max_iters", "4", "--resume"]) == 1
    broken.write_bytes(b"another photograph")
    with pytest.raises(UserError, match=r"1 photograph of --backlit_images_path came.*as 9\.png"):
        run([*arguments, "--resume"])


def test_the_list_of_photographs_is_kept_once_beside_the_saved_state(arguments, tmp_path):
    run([*arguments, "--max_iters", "1"])
    listed, last = tmp_path / "run" / "photographs.json", tmp_path / "run" / "last.pt"
    text = listed.read_bytes()
    assert json.loads(text)["backlit_images_path"].keys() == {f"{n}.png" for n in range(4)}
    assert b"0.png" not in last.read_bytes()
    listed.write_bytes(text.replace(b"0.png", b"9.png"))
    with pytest.raises(UserError, match=r"photographs\.json is not the list"):
        run([*arguments, "--resume"])
    listed.unlink()
    with pytest.raises(UserError, match=r"last\.pt: .*photographs\.json cannot be read \(No such"):
        run([*arguments, "--resume"])
    listed.write_bytes(text)
    assert run([*arguments, "--max_iters", "2", "--resume"]) == 0
    assert listed.read_bytes() == text


def test_a_state_that_holds_its_photographs_itself_is_resumed(arguments, tmp_path, undisturbed):
    run([*arguments, "--max_iters", "2"])
    listed, last = tmp_path / "run" / "photographs.json", tmp_path / "run" / "last.pt"
    text, state = listed.read_text(), torch.load(last, weights_only=True)
    state["layout"], state["record"]["photographs"] = 3, json.loads(text)
    torch.save(state, last)
    listed.unlink()
    run([*arguments, "--resume"])
    assert same(final(tmp_path), final(undisturbed(arguments), "whole"))
    assert listed.read_text() == text
    state["record"]["photographs"]["well_lit_images_path"]["3.png"] += 1
    torch.save(state, last)
    with pytest.raises(UserError, match=r"--well_lit_images_path came.*such as 3\.png"):
        run([*arguments, "--resume"])


def test_an_option_that_the_saved_run_did_not_know_counts_as_its_default(arguments, tmp_path):
    run([*arguments, "--max_iters", "1"])
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del state["record"]["options"]["clip_grad_norm"]
    torch.save(state, tmp_path / "run" / "last.pt")
    with pytest.raises(UserError, match=r"--clip_grad_norm was 0\.0"):
        run([*arguments, "--resume", "--clip_grad_norm", "1"])
    assert run([*arguments, "--resume"]) == 0
    state["record"]["options"]["accumulate"] = True  # equal to 1, but nothing that was given
    torch.save(state, tmp_path / "run" / "last.pt")
    with pytest.raises(UserError, match="--accumulate was True"):
        run([*arguments, "--resume"])


@pytest.mark.parametrize("name", ["clip_weights", "identity_weights", "unet_pretrain_dir"])
def test_other_weights_are_refused_wherever_they_lie(arguments, tmp_path, name):
    torch.manual_seed(0)
    save_weights(UNetEnhancer(), tmp_path / "unet_pretrain_dir")
    arguments = [*arguments, "--unet_pretrain_dir", str(tmp_path / "unet_pretrain_dir")]
    run([*arguments, "--max_iters", "1"])
    path = arguments[arguments.index(f"--{name}") + 1]
    weights = torch.load(path, weights_only=True)
    torch.save(dict(reversed(weights.items())), tmp_path / "moved.pt")
    key = min(weights)
    torch.save({**weights, key: weights[key] + 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=f"weights of --{name} are not those"):
        run([*arguments, f"--{name}", str(tmp_path / "other.pt"), "--resume"])
    run([*arguments, f"--{name}", str(tmp_path / "moved.pt"), "--resume"])


def test_a_resumed_run_reads_only_what_it_learns_from(arguments, tmp_path, monkeypatch):
    run([*arguments, "--max_iters", "1"])
    read = []
    real = photo_store.read_rgb
    monkeypatch.setattr(photo_store, "read_rgb", lambda path: read.append(path) or real(path))
    run([*arguments, "--max_iters", "2", "--resume"])
    assert {Path(path).parent.name for path in read} == {"backlit"}


@pytest.mark.parametrize("problem", ["weights", "folder", "name"])
def test_what_would_fail_later_is_refused_before_any_photograph_is_read(
    arguments, tmp_path, monkeypatch, problem
):
    (tmp_path / "file").touch()
    wrong, sentence = {
        "weights": (["--unet_pretrain_dir", "nosuch.pth"], "nosuch.pth"),
        "folder": (["--save_dir", str(tmp_path / "file")], "choose another --save_dir"),
        "name": (["--exp_name", "../elsewhere"], "inside --save_dir"),
    }[problem]
    monkeypatch.setattr(photo_store, "read_rgb", None)
    with pytest.raises(UserError, match=sentence) as end:
        run([*arguments, *wrong])
    assert end.value.status == 2 and not list(tmp_path.glob("**/last.pt"))
