"""What the tests of both training scripts look at."""

import csv

import torch

from utils.checkpoint import load_weights


def final(tmp_path, name="run", kind="model"):
    """The weights that a run ended with."""
    return load_weights(tmp_path / name / f"snapshots_{kind}" / "final.pth")


def same(one, other):
    """Whether two state dicts are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def renamed(arguments, name):
    """The arguments of the same run under another name."""
    return [name if word == "run" else word for word in arguments]


def rows(folder):
    """The lines of a run's log, without the seconds, which are never the same."""
    with (folder / "log.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]
