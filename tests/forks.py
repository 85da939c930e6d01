"""Scripts run by the dozen, each in a process of its own that is forked ready to start.

A server imports the scripts once and loads the encoders once; each run is a fork of it, in a group
of processes of its own, and can be told to meet a fault at the n-th call of what it does.
"""

import contextlib
import csv
import errno
import functools
import importlib
import inspect
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tests.commands import ROOT

SCRIPTS = ("train", "train_rave", "inference", "compute_metrics")


# Drawing takes longer than all else in a short run:
DRAWINGS = (
    "training.residual.save_histogram",
    "training.guidance.save_histogram",
    "training.journal.save_curves",
)


def stand_in(name):
    """Stand in for one of DRAWINGS, for calls that it would take."""
    from utils.files import atomic_path

    signature = inspect.signature(pkgutil.resolve_name(name))

    def draw(path, *rest, **named):
        signature.bind(path, *rest, **named)
        with atomic_path(path) as temporary:
            temporary.write_text("a drawing")

    return draw


class Forks:
    """The server's client, to be closed.

    Args:
        folder: for what the runs say.
        guidance, identity: weights of the encoders.
    """

    def __init__(self, folder, guidance, identity):
        self.folder, self.runs = folder, 0
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.forks", guidance, identity]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
        environment |= {"PYTHONUNBUFFERED": "1"}  # what a run says stands in the order it was said
        self.server = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def start(self, script, arguments, fault=None, n=1, on=False, environment=(), pause=None):
        """Start a run.

        Args:
            script: of SCRIPTS.
            arguments: of its command line.
            fault: of FAULTS, or "after" for a kill after n seconds.
            n: the call that meets the fault, from 1.
            on: whether all later calls meet it, too.
            environment: variables of the run's own.
            pause: a function's dotted name and seconds; its first call says PAUSED and waits.

        Returns:
            The run's process id.
        """
        self.runs += 1
        self.said = self.folder / f"said{self.runs}"
        request = dict(script=script, arguments=arguments, said=str(self.said))
        request |= dict(fault=fault, n=n, on=on, environment=dict(environment), pause=pause)
        return self._ask(request)

    def wait(self, pid):
        """Wait for a run; return its exit status, negative for a signal."""
        return self._ask({"wait": pid})

    def run(self, *request, **named):
        """Start a run and wait for it; return its status and what it said."""
        status = self.wait(self.start(*request, **named))
        return status, self.said.read_text()

    def start_ranks(self, count, script, arguments, faults=None):
        """Start a run of several processes, as torchrun and srun do.

        Args:
            count: of the processes.
            script, arguments: as for `start`.
            faults: rank -> what else `start` takes for it.

        Returns:
            The processes' ids and the files of what they say, by rank.
        """
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        started = []
        for rank in range(count):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            request = dict((faults or {}).get(rank, {}))
            own |= request.pop("environment", {})
            pid = self.start(script, arguments, environment=own, **request)
            started.append((pid, self.said))
        return started

    def run_ranks(self, count, script, arguments, faults=None):
        """Run several processes to their end; return their statuses and all that they said."""
        started = self.start_ranks(count, script, arguments, faults)
        statuses = [self.wait(pid) for pid, _ in started]
        return statuses, "".join(said.read_text() for _, said in started)

    def _ask(self, request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self):
        # Told, since a loading process that a failed test left may hold the pipe open.
        self.server.communicate(json.dumps({"end": True}) + "\n")


def kill_half_way(path, contents):
    with path.open("wb") as stream:
        stream.write(memoryview(contents)[: len(contents) // 2])
    kill()


def full_half_way(path, contents):
    with path.open("wb") as stream:
        stream.write(memoryview(contents)[: len(contents) // 2])
    full()


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save_gradients(learner, *_):
    """Append an iteration's gradients to the file that the environment names."""
    with open(os.environ["GRADIENTS"], "ab") as stream:
        gradients = [parameter.grad.numpy().ravel() for parameter in learner.module.parameters()]
        np.save(stream, np.concatenate(gradients))


def out_of_memory(*_, **__):
    raise MemoryError


def ask_to_end(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


def nothing(*_, **__):
    """Only the calls are counted."""


def ask_to_save(*_, **__):
    os.kill(os.getpid(), signal.SIGUSR1)


# What meets the fault, what happens there, and whether the call is made after it.
FAULTS = {
    "kill while writing": ("pathlib.Path.write_bytes", kill_half_way, False),
    "kill before renaming": ("os.replace", kill, False),
    "kill in a step": ("training.run.Run.step", kill, False),
    "kill in a record": ("training.run.Run.record", kill, False),
    "full at creating": ("tempfile.mkstemp", full, False),
    "full while writing": ("pathlib.Path.write_bytes", full_half_way, False),
    "full at renaming": ("os.replace", full, False),
    "full at logging": ("csv.DictWriter.writerow", full, False),
    "no memory in a step": ("training.run.Run.step", out_of_memory, False),
    "a photograph": ("data.photo_store.read_rgb", nothing, True),
    "a step": ("training.learner.Learner.step", save_gradients, True),
    "SIGTERM": ("training.run.Run.step", ask_to_end, True),
    "kill in scoring": ("evaluation.scoring.Scorer.score", kill, False),
    "SIGUSR1": ("training.run.Run.step", ask_to_save, True),
}
OWNERS = {"pathlib.Path": Path, "os": os, "tempfile": tempfile, "csv.DictWriter": csv.DictWriter}


def owner_of(place):
    """The module or class that a dotted name lies in, and the rest of the name."""
    where, _, attribute = place.rpartition(".")
    return OWNERS.get(where) or pkgutil.resolve_name(where), attribute


def pauses(stack, place, seconds):
    """Let a function's first call say so and wait, for a signal to come."""
    owner, attribute = owner_of(place)
    real, called = getattr(owner, attribute), []

    def pausing(*positional, **named):
        if not called:
            called.append(True)
            print("PAUSED", flush=True)
            time.sleep(seconds)
        return real(*positional, **named)

    stack.enter_context(patch.object(owner, attribute, pausing))


def meets(stack, name, n, on, calls):
    """Let a fault come at the n-th call; count the calls."""
    place, act, goes_on = FAULTS[name]
    owner, attribute = owner_of(place)
    real = getattr(owner, attribute)

    def meeting(*positional, **named):
        calls[name] += 1
        if n and (calls[name] == n or (on and calls[name] > n)):
            act(*positional, **named)
            if not goes_on:
                return None
        return real(*positional, **named)

    stack.enter_context(patch.object(owner, attribute, meeting))


def run(request):
    """Run a script in this process, and leave beside what it says how often each place was met."""
    os.setpgid(0, 0)
    os.environ.update(request["environment"])
    said = os.open(request["said"], os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(said, stream)
    calls, status = Counter(), 1
    try:
        with contextlib.ExitStack() as stack:
            if request["fault"] == "after":
                signal.setitimer(signal.ITIMER_REAL, request["n"])
            for name in FAULTS:
                meets(stack, name, request["n"] * (name == request["fault"]), request["on"], calls)
            if request["pause"]:
                pauses(stack, *request["pause"])
            from utils import distributed
            from utils.script import exit_with

            # Else one of several would end before its calls are written:
            stack.enter_context(patch.object(distributed, "has_joined", lambda: False))
            script = importlib.import_module(request["script"])
            with patch.object(sys, "argv", [script.__file__, *request["arguments"]]):
                args = script.parse_arguments()
            exit_with(script.main, args)
    except SystemExit as end:
        status = end.code or 0
    finally:
        Path(request["said"] + ".calls").write_text(json.dumps(calls))
        os._exit(status)


def serve(guidance_weights, identity_weights):
    """Answer requests on standard input until it ends."""
    import torch

    from models import vocabulary
    from training import encoder_weights

    encoder_weights.load_encoder = load = functools.cache(encoder_weights.load_encoder)
    load("ViT-B-32", guidance_weights, torch.device("cpu"), "--clip_weights", None, 1)
    load("RN101", identity_weights, torch.device("cpu"), "--identity_weights")
    # How long a loader waits for its processes to end by themselves; torch's are 5 seconds:
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    scripts = {name: importlib.import_module(name) for name in SCRIPTS}
    scripts["train"].GUIDANCE_SIZE = 16
    vocabulary.vocabulary_texts = lambda: [f"word {number}" for number in range(50)]
    for name in DRAWINGS:
        module, _, function = name.rpartition(".")
        setattr(importlib.import_module(module), function, stand_in(name))
    for line in sys.stdin:
        request = json.loads(line)
        if "end" in request:
            return
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            run(request)
        else:
            with contextlib.suppress(OSError):  # the run may have done it, or be over
                os.setpgid(answer, answer)
        print(json.dumps(answer), flush=True)


def group_ends(group, seconds):
    """Whether all processes of a run's group end within so many seconds; zombies have ended."""
    end = time.monotonic() + seconds
    while alive := members(group):
        if time.monotonic() > end:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def members(group):
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            state, _, of = (entry / "stat").read_text().rpartition(") ")[2].split()[:3]
            if int(of) == group and state not in "ZX" and entry.name.isdigit():
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    serve(*sys.argv[1:])
