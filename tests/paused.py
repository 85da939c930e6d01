"""Run a training script that stops at a function's first call, for a signal to meet it there.

python -m tests.paused FUNCTION SECONDS train_rave [ARGUMENT ...]
"""

import importlib
import sys
import time
from unittest.mock import patch

from utils.script import exit_with


def paused(function, seconds):
    called = []

    def pause(*positional, **named):
        if not called:
            called.append(True)
            print("PAUSED", flush=True)
            time.sleep(seconds)
        return function(*positional, **named)

    return pause


def main(name, seconds, script, *arguments):
    module = importlib.import_module(script)
    where, _, attribute = name.rpartition(".")
    try:
        owner = importlib.import_module(where)
    except ModuleNotFoundError:  # a method
        outer, _, kind = where.rpartition(".")
        owner = getattr(importlib.import_module(outer), kind)
    with patch.object(owner, attribute, paused(getattr(owner, attribute), float(seconds))):
        exit_with(module.main, module.parse_arguments(list(arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
