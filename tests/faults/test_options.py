"""Odd values for every option of every script: a sentence before work begins, or a run."""

import argparse
import importlib
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.errors import UserError

SCRIPTS = ("train", "train_rave", "inference", "compute_metrics", "data.prepare")
# No valid numbers of a size that would keep a machine busy for long:
ODD = (
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "-0.0",
    "-1",
    "0",
    "1",
    "0.5",
    "1e39",
    "1e-50",
    "1_0",
    "9" * 400,
)
ODD += (
    "x",
    "True",
    "None",
    "/dev/null",
    "-",
    "--",
    "~",
    "*",
    "a" * 300,
    "a/b",
    "\n",
    "é",
)
ODD += ("٣", "timm/nothing", "timm/resnet18.nothing", "RN101", "laion2b", "cuda:99", "meta")
ODD += ("{folder}", "{file}", "{photo}", "{missing}", "{empty}", "{broken}", "{html}")


@pytest.fixture
def places(tmp_path):
    """Files and folders that options can name."""
    photo = tmp_path / "photos" / "1.png"
    photo.parent.mkdir()
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(photo)
    (tmp_path / "folder").mkdir()
    named = {"photo": photo, "folder": tmp_path / "folder", "missing": tmp_path / "missing"}
    for name, contents in {
        "file": b"text",
        "empty": b"",
        "broken": b"PK\3\4" + b"\0" * 60,
        "html": b"<!DOCTYPE html><title>404</title>",
    }.items():
        named[name] = tmp_path / name
        named[name].write_bytes(contents)
    return named


@pytest.fixture
def commands(places, tiny_run, tmp_path, training_folders):
    """The arguments of a run in a second or less, for each script."""
    photos = str(places["photo"].parent)
    train = [*tiny_run, "--max_iters", "1", "--num_reconstruction_iters", "1"]
    return {
        "train": [*train, "--mode", "clip-lit-latent", "--num_clip_pretrained_iters", "1"],
        "train_rave": train,
        "inference": ["-i", photos, "-o", str(tmp_path / "results")],
        "compute_metrics": [
            *("--gt_images_path", photos, "--enhanced_images_path", photos, "--metrics", "psnr")
        ],
        "data.prepare": [str(tmp_path / "data"), "--simulate", photos, "--size", "8"],
    }


@pytest.mark.parametrize("script", [*SCRIPTS, "data.demo"])
def test_two_dashes_are_no_value(script, monkeypatch, capsys):
    module = importlib.import_module(script)
    for flag in options_of(module, monkeypatch):
        with pytest.raises(SystemExit):
            parse(module, [f"{flag}=--"])
        assert f"{flag} needs a value" in capsys.readouterr().err


def options_of(module, monkeypatch):
    """The options of a script that take a value, each by its longest name."""
    made = []
    real = argparse.ArgumentParser.parse_args

    def caught(parser, *rest):
        made.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        parse(module, [])
    assert argparse.ArgumentParser.parse_args is real
    return [
        max(action.option_strings, key=len)
        for action in made[0]._actions
        if action.option_strings and action.nargs != 0
    ]


def parse(module, arguments):
    before, sys.argv = sys.argv, ["script", *arguments]
    try:
        return module.parse_arguments()
    finally:
        sys.argv = before


@pytest.mark.parametrize("script", SCRIPTS)
def test_odd_values_are_refused_or_run(
    script, commands, places, fault, count, monkeypatch, capsys, tmp_path
):
    module = importlib.import_module(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    flags = options_of(module, monkeypatch)
    kind = fault("odd command lines")
    odd = [text.format(**places) if "{" in text else text for text in ODD]
    values = st.sampled_from(odd) | st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
    )
    number = iter(range(10**6))

    @settings(
        max_examples=count(4, 150),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(flags), values, st.booleans())
    def attempt(flag, value, joined):
        arguments = list(commands[script])
        arguments += [f"{flag}={value}"] if joined else [flag, value]
        if "run" in arguments and flag != "--exp_name":
            arguments[arguments.index("run")] = f"run{next(number)}"
        with kind.case(f"{script} {arguments[-2:]}"):
            capsys.readouterr()
            try:
                status = module.main(parse(module, arguments)) or 0
            except SystemExit as error:
                assert error.code == 2 and "error:" in capsys.readouterr().err
            except UserError as error:
                assert str(error) and error.status in (1, 2)
            else:
                assert status in (0, 1)

    attempt()
