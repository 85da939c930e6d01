"""Average checkpoints of one architecture.

python -m pretrained_models.average OUTPUT FILE FILE [...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from utils import checkpoint
from utils.errors import UserError
from utils.script import exit_with


def average(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts, tensor by tensor.

    Raises:
        UserError: their names or shapes differ.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise UserError("the checkpoints are not of one architecture, so they have no average")
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}


def main(args: argparse.Namespace) -> None:
    """Write the average in the format that the output's suffix names."""
    if len(args.files) < 2:
        raise UserError("an average needs two files at least: OUTPUT FILE FILE")
    if Path(args.output).exists():
        raise UserError(f"{args.output} exists; choose a new name for the average")
    mean = average([checkpoint.load_weights(path) for path in args.files])
    checkpoint.save_state_dict(mean, args.output)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output")
    parser.add_argument("files", nargs="+")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
