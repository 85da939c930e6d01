"""The README's table of what the published commands come to."""

import re

import pytest

import train
import train_rave
from data.datasets import batches_per_epoch
from models.enhancer import UNetEnhancer
from tests.commands import ROOT
from training.plan import Plan

PHOTOGRAPHS = 368  # BAID's, for training
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = {
    name: figures.split(" | ")
    for name, figures in re.findall(
        r"^\| ([\w ,()]+) \| ([\d., GB]+ \| [\d., GB]+) \|$", README, re.M
    )
}


@pytest.fixture(params=["train_rave", "train"])
def published(request):
    """The column of a script's command, and its options."""
    script = {"train_rave": train_rave, "train": train}[request.param]
    args = script.parse_arguments(["-b", "a", "-r", "b", "--exp_name", "c"])
    return request.param == "train", args


def enhancer_iterations(args):
    return args.num_epochs * batches_per_epoch(PHOTOGRAPHS, args.train_batch_size)


def test_iterations(published):
    column, args = published
    limit = enhancer_iterations(args)
    lengths = [limit, args.num_reconstruction_iters, args.round_iters]
    if column:
        lengths += [args.num_clip_pretrained_iters, args.refinement_iters]
    assert TABLE["iterations of the enhancer"][column] == f"{limit:,}"
    assert TABLE["iterations of the guidance, about"][column] == f"{Plan.of(*lengths).guidance:,}"


def test_weights_on_disk(published):
    column, args = published
    weights = sum(value.nbytes for value in UNetEnhancer().state_dict().values())
    total = enhancer_iterations(args) // args.display_iter * weights
    assert TABLE["weights on disk, at most"][column] == f"{total / 1e9:.1f} GB"
