"""CLIP-LIT's training script, run as a user runs it, on tiny images and the tiny CLIP."""

import functools
import os
import signal

import pytest
import torch

import train
from tests.runs import final, renamed, rows, same
from utils.errors import UserError

LOADED = functools.cache(train.load_encoders)
# Three iterations of initialisation and of warm-up, then twice two of a round and two of
# refinement, then one of the third round, cut short.
STAGES = [
    *[("initialisation", "0")] * 2,
    *[("warm-up", "0")] * 2,
    *[("round", "1"), ("refinement", "1"), ("round", "2"), ("refinement", "2"), ("round", "3")],
]


@pytest.fixture(autouse=True)
def short_stages(monkeypatch):
    """Encoders are loaded once, and the stages of fixed length are short."""
    monkeypatch.setattr(train, "load_encoders", LOADED)
    monkeypatch.setattr(train, "ROUND_ITERS", 2)
    monkeypatch.setattr(train, "REFINEMENT_ITERS", 2)
    monkeypatch.setattr(train, "GUIDANCE_SIZE", 16)


@pytest.fixture(params=["clip-lit", "clip-lit-latent"])
def arguments(request, tiny_run, monkeypatch):
    """A run through every stage, up to four levels of refinement.

    The stages are too short for a table of turned images to pay; one mode gets it all the same.
    """
    if request.param == "clip-lit-latent":
        monkeypatch.setattr(train, "TURN_SHARE", 1e9)
    return [
        *tiny_run,
        *("--mode", request.param, "--thre_train", "1e9", "--thre_prompt", "1e9"),
        *("--num_clip_pretrained_iters", "3", "--prompt_display_iter", "2"),
        *("--prompt_batch_size", "4", "--max_iters", "8"),
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


def test_refinement_sees_the_older_round_before_the_newer(arguments, monkeypatch):
    seen, loss = [], train.refinement_loss

    def watched(probabilities):
        seen.append(len(probabilities))
        return loss(probabilities)

    made, level = [], train.enhanced_level

    def watched_level(weights, *rest):
        made.append(weights)
        return level(weights, *rest)

    monkeypatch.setattr(train, "refinement_loss", watched)
    monkeypatch.setattr(train, "enhanced_level", watched_level)
    run(arguments)
    assert seen == [3, 3, 4, 4]
    first, older, newer = made
    assert same(first, older) and not same(older, newer)


# Calls of the two steps, in all stages; each is interrupted in another stage.
@pytest.mark.parametrize("stage", ["initialisation", "warm-up", "round", "refinement"])
def test_a_run_interrupted_in_any_stage_goes_on_to_the_very_same_weights(
    arguments, tmp_path, monkeypatch, undisturbed, stage
):
    whole = undisturbed(arguments)
    real, calls = train.check_finite, []

    def interrupting(loss, state):
        calls.append(state.schedule.stage)
        if calls.count(stage) == (3 if stage == "refinement" else 1):
            os.kill(os.getpid(), signal.SIGINT)
        real(loss, state)

    monkeypatch.setattr(train, "check_finite", interrupting)
    monkeypatch.setattr("training.stages.check_finite", interrupting)
    assert run(arguments) == 130
    assert calls[-1] == stage
    monkeypatch.setattr(train, "check_finite", real)
    monkeypatch.setattr("training.stages.check_finite", real)
    assert run([*arguments, "--resume"]) is None
    for kind in ("model", "guidance"):
        assert same(final(tmp_path, kind=kind), final(whole, "whole", kind))
    assert rows(tmp_path / "run") == rows(whole / "whole")


def test_turned_images_are_looked_up(tiny_run, monkeypatch):
    args = train.parse_arguments(tiny_run)
    args.device = torch.device("cpu")
    encoder, _ = train.load_encoders("ViT-B-32", args.clip_weights, "RN101", args.identity_weights)
    photos = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    dataset = train.LevelTuples([photos, photos / 2])
    assert train.embed_turns(encoder, dataset.turns, 4, 2, args) is None  # 80 turns, few are met
    turned = train.embed_turns(encoder, dataset.turns, 1000, 2, args)
    assert turned.shape == (80, encoder.dim)
    images, places = next(train.stream_batches(dataset, 8))
    new = (places < 0).sum()
    assert 0 < new < places.numel()
    expected = train.embed_batch(encoder, images, places, None, args)
    embedded, embed = [], train.embed
    monkeypatch.setattr(
        train,
        "embed",
        lambda encoder, shown, args: embedded.append(len(shown)) or embed(encoder, shown, args),
    )
    torch.testing.assert_close(
        train.embed_batch(encoder, images, places, turned, args), expected, rtol=0, atol=1e-5
    )
    assert embedded == [new]


def test_guidance_learns_to_tell_the_folders_apart(arguments, tmp_path):
    if "clip-lit" in arguments:
        arguments = [*arguments, "--prompt_lr", "1e-3"]
    run([*arguments, "--max_iters", "1", "--num_clip_pretrained_iters", "30"])
    losses = [
        float(row["loss"]) for row in rows(tmp_path / "run") if row["stage"] == "initialisation"
    ]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_stage_goes_on_while_its_loss_is_too_high(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "EXTRA_PROMPT_ITERS", 4)
    threshold = ["--thre_prompt", "0.0", "--max_iters", "1"]
    monkeypatch.setattr(train, "run_stage", functools.partial(stage_until, train.run_stage, most=9))
    run([*arguments, *threshold])
    done = [int(row["stage_iteration"]) for row in rows(tmp_path / "run")]
    assert max(done) == 3 + 4 + 4


def stage_until(real, state, learner, step, *, extend, most, **named):
    """Run a stage that is lengthened no more once it has `most` iterations."""
    real(
        state,
        learner,
        step,
        extend=lambda terms: extend(terms) if state.schedule.done < most else 0,
        **named,
    )


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
