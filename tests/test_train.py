"""CLIP-LIT's training script, run as a user runs it, on tiny images and the tiny CLIP."""

import functools
import signal

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.runs import final, renamed, rows, same, send_signal, signals_answered
from training import guidance
from training.run import Run
from utils.errors import UserError
from utils.signals import Interrupted

LOADED = functools.cache(train.load_encoders)
# Three iterations of initialisation and of warm-up, then twice two of a round and two of
# refinement, then one of the third round, cut short.
STAGES = [
    *[("initialisation", "0")] * 2,
    *[("warm-up", "0")] * 2,
    *[("round", "1"), ("refinement", "1"), ("round", "2"), ("refinement", "2"), ("round", "3")],
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Encoders are loaded once, and guidance sees tiny images."""
    monkeypatch.setattr(train, "load_encoders", LOADED)
    monkeypatch.setattr(train, "GUIDANCE_SIZE", 16)


@pytest.fixture(params=["clip-lit", "clip-lit-latent"])
def arguments(request, tiny_run):
    """A run through every stage, up to four levels of refinement."""
    return [
        *tiny_run,
        *("--mode", request.param, "--thre_train", "1e9", "--thre_prompt", "1e9"),
        *("--num_clip_pretrained_iters", "3", "--prompt_display_iter", "2"),
        *("--prompt_batch_size", "4", "--max_iters", "8"),
        *("--round_iters", "2", "--refinement_iters", "2"),
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Run once in each mode without interruption; return the folder above the run's."""
    folders = {}

    def once(arguments):
        mode = arguments[arguments.index("--mode") + 1]
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp(mode)
            run([*renamed(arguments, "whole"), "--save_dir", str(folders[mode])])
        return folders[mode]

    return once


def run(arguments):
    return train.main(train.parse_arguments(arguments))


def test_defaults_are_the_published_setting():
    base = ["-b", "a", "-r", "b", "--exp_name", "c"]
    args = train.parse_arguments(base)
    published = {
        "mode": "clip-lit",
        "train_lr": 2e-5,
        "weight_decay": 1e-3,
        "train_batch_size": 8,
        "prompt_batch_size": 16,
        "num_epochs": 3000,
        "num_reconstruction_iters": 1000,
        "num_clip_pretrained_iters": 8000,
        "round_iters": 2100,
        "refinement_iters": 1000,
        "length_prompt": 16,
        "thre_train": 90,
        "thre_prompt": 60,
    }
    assert {name: getattr(args, name) for name in published} == published
    assert train.PROMPT_LR == {"clip-lit": 5e-6, "clip-lit-latent": 5e-4}


def test_a_run_goes_through_every_stage(arguments, undisturbed):
    folder = undisturbed(arguments) / "whole"
    assert [(row["stage"], row["round"]) for row in rows(folder)] == STAGES
    for kind, names in (
        ("model", ["best_model_round0", "best_model_round1", "best_model_round2", "final"]),
        ("guidance", [f"best_guidance_learner_{n}" for n in ("epoch0", "round1", "round2")]),
    ):
        for name in names:
            assert (folder / f"snapshots_{kind}" / f"{name}.pth").is_file()
    for name in ("epoch0", "round1", "round2"):
        assert (folder / f"separation_{name}.png").is_file()
    key = "module.prompt_embedding" if "clip-lit" in arguments else "module.guidance_embeddings"
    saved = torch.load(folder / "snapshots_guidance" / "final.pth", weights_only=True)
    assert list(saved) == [key]
    safe = load_file(folder / "snapshots_guidance" / "final.safetensors")
    assert torch.equal(safe[key.removeprefix("module.")], saved[key])


def test_refinement_sees_the_older_round_before_the_newer(arguments, monkeypatch):
    made, level, tuples = [], guidance.enhanced_level, []

    def watched_level(weights, *rest):
        made.append((weights, level(weights, *rest)))
        return made[-1][1]

    class WatchedTuples(guidance.LevelTuples):
        def __init__(self, backlit, enhanced, well_lit, seed):
            tuples.append((enhanced, seed))
            super().__init__(backlit, enhanced, well_lit, seed)

    monkeypatch.setattr(guidance, "enhanced_level", watched_level)
    monkeypatch.setattr(guidance, "LevelTuples", WatchedTuples)
    run(arguments)
    (first, _), (older, older_level), (newer, newer_level) = made
    assert same(first, older) and not same(older, newer)
    assert [seed for _, seed in tuples] == [1, 2]
    assert [len(levels) for levels, _ in tuples] == [1, 2]
    assert tuples[1][0][0] is older_level and tuples[1][0][1] is newer_level


@pytest.mark.parametrize("method", ["step", "record"])
@pytest.mark.parametrize("stage", ["initialisation", "warm-up", "round", "refinement"])
def test_a_run_interrupted_in_any_stage_goes_on_to_the_very_same_weights(
    arguments, tmp_path, monkeypatch, undisturbed, stage, method
):
    whole = undisturbed(arguments)
    with monkeypatch.context() as patched, signals_answered():
        send_signal(patched, method, stage, 3 if stage == "refinement" else 1, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run(arguments)
    run([*arguments, "--resume"])
    for kind in ("model", "guidance"):
        assert same(final(tmp_path, kind=kind), final(whole, "whole", kind))
    assert rows(tmp_path / "run") == rows(whole / "whole")


def test_a_saved_state_that_lacks_a_round_is_refused(arguments, tmp_path):
    run(arguments)  # to the third round
    last = tmp_path / "run" / "last.pt"
    state = torch.load(last, weights_only=True)
    assert list(state["constants"]["rounds"]) == [1, 2]
    for constants in ({}, {"rounds": {2: state["constants"]["rounds"][2]}}):
        torch.save(state | {"constants": constants}, last)
        with pytest.raises(UserError, match="constants"):
            run([*arguments, "--resume"])
    torch.save(state, last)
    assert run([*arguments, "--resume"]) == 0


def test_guidance_learns_to_tell_the_folders_apart(arguments, tmp_path):
    if "clip-lit" in arguments:
        arguments = [*arguments, "--prompt_lr", "1e-3"]
    run([*arguments, "--max_iters", "1", "--num_clip_pretrained_iters", "30"])
    losses = [
        float(row["loss"]) for row in rows(tmp_path / "run") if row["stage"] == "initialisation"
    ]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_stage_goes_on_while_its_loss_is_too_high(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("training.stages.EXTRA_PROMPT_ITERS", 4)
    real, extended = Run.extend, []

    def extend_twice(run, iterations):
        extended.append(run.schedule.stage)
        if len(extended) <= 2:
            real(run, iterations)

    monkeypatch.setattr(Run, "extend", extend_twice)
    run([*arguments, "--thre_prompt", "0.0", "--max_iters", "1"])
    assert extended == ["initialisation"] * 3
    done = [int(row["stage_iteration"]) for row in rows(tmp_path / "run")]
    assert max(done) == 3 + 4 + 4


def test_guidance_weights_travel(arguments, tmp_path, capsys):
    run([*arguments, "--max_iters", "1"])
    weights = tmp_path / "run" / "snapshots_guidance" / "best_guidance_learner_epoch0.pth"
    other = [*renamed(arguments, "other"), "--max_iters", "1"]
    given = ["--guidance_pretrain_dir", str(weights)]
    run([*other, *given])
    assert "without an initialisation" in capsys.readouterr().out
    assert "initialisation" not in {row["stage"] for row in rows(tmp_path / "other")}
    assert same(final(tmp_path, "other", "guidance"), final(tmp_path, "run", "guidance"))
    swapped = "clip-lit-latent" if "clip-lit" in arguments else "clip-lit"
    with pytest.raises(UserError, match="does not hold"):
        run([*renamed(arguments, "third"), *given, "--mode", swapped])
    with pytest.raises(UserError, match="--guidance_pretrain_dir"):
        run([*renamed(arguments, "third"), "--load_pretrain_guidance", "True"])


def test_clip_lit_needs_texts(tiny_run, monkeypatch):
    encoder = functools.cache(train.load_encoders)(
        "timm/tf_efficientnet_lite0",
        None,
        "RN101",
        tiny_run[tiny_run.index("--identity_weights") + 1],
    )
    monkeypatch.setattr(train, "load_encoders", lambda *_: encoder)
    with pytest.raises(UserError, match="text"):
        run([*tiny_run, "--mode", "clip-lit"])
