"""Several processes that share one run's work: its ranks, as torchrun starts them.

Slurm's srun serves as well, with the same variables in the environment. A process that was started
alone is rank 0 of 1, and every function here does what it needs, which is nothing.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from utils import errors
from utils.errors import UserError, WorkError
from utils.signals import call_interruptibly

VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
# What gloo, NCCL and their store say when a process that they talk to is gone.
LOST_CONTACT = re.compile(r"gloo|NCCL|TCPStore|Broken pipe|Connection (closed|reset|refused)", re.I)
LAST_WORDS = 2.0  # seconds that rank 0 waits for others that fail with it
_store: list[dist.Store] = []  # of this run, once it has joined
_parent: list[int] = []  # the process that started this one, likewise


class PeerLost(WorkError):
    """Another process of this run has ended, so that its work cannot go on."""


def rank() -> int:
    """The number of this process among those of its run; rank 0 writes and speaks for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes in this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and speaks for all of its run."""
    return rank() == 0


def local_shard(count: int) -> range:
    """This process's part of `count` items that the processes of its machine share."""
    return _part(count, local_rank(), local_world_size())


def local_world_size() -> int:
    """The number of processes of this run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def local_rank() -> int:
    """The number of this process among those of its run on its machine."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def shard(count: int, of: int | None = None) -> range:
    """A process's part of `count` items, in order: some have one item more than others.

    Args:
        count: of the items, 0 or more.
        of: the process's rank; None for this one.
    """
    return _part(count, rank() if of is None else of, world_size())


def _part(count: int, number: int, parts: int) -> range:
    return range(count * number // parts, count * (number + 1) // parts)


def join(
    device: torch.device, quiet: bool = True, patience: timedelta | None = None
) -> torch.device:
    """Join the other processes of this run, if torchrun or srun started it as one of several.

    Args:
        device: that the user chose; a GPU without a number becomes the one of this process.
        quiet: whether only rank 0 says what it does and warns; else all warn.
        patience: how long a process waits where others are still at work; None for 30 minutes.

    Returns:
        The device of this process.

    Raises:
        UserError: variables are missing, or there is no such device.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        return device
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set in the environment, but not {', '.join(missing)}; start with "
            "torchrun, or unset it"
        )
    number = int(os.environ["LOCAL_RANK"])
    if device.type == "mps":
        raise UserError("a Mac's GPU serves one process; start without torchrun, or --device cpu")
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"--device {device} is one GPU for all processes; give --device cuda")
        if number >= torch.cuda.device_count():
            raise UserError(
                f"process {number} of this machine finds {torch.cuda.device_count()} GPUs; give "
                "torchrun as many as --nproc_per_node"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    store, _, _ = next(rendezvous("env://"))
    _store.append(store)
    _parent.append(os.getppid())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("rave", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=patience,
    )
    if not is_main():
        errors.be_quiet(warnings=quiet)
    return device


def has_joined() -> bool:
    """Whether this process is, or was until it left, one of several of a run."""
    return bool(_parent)


def is_orphan() -> bool:
    """Whether torchrun, or what else started this process of several, has been killed."""
    return bool(_parent) and os.getppid() != _parent[0]


def leave() -> None:
    """Wait for the other processes of this run, and leave it.

    Raises:
        PeerLost: one of them ended before.
    """
    if dist.is_initialized():
        wait_for_all()
        dist.destroy_process_group()


def is_first_to_fail() -> bool:
    """Whether this process is the first of its run that asks: it says for all what went wrong."""
    if not _store:
        return True
    if is_orphan():  # the store was torchrun's
        return is_main()
    try:
        return _store[0].add("failed", 1) == 1
    except Exception:  # the store went with the process that held it
        _store.clear()
        return True


def await_last_words() -> None:
    """Let rank 0, which may hold what tells who is first to fail, end after those that ask."""
    if not _store:
        return
    end = time.monotonic() + LAST_WORDS
    with suppress(RuntimeError):  # it went with the process that held it
        ended = _store[0].add("ended", 1)
        while is_main() and ended < world_size() and time.monotonic() < end:
            time.sleep(0.02)
            ended = _store[0].add("ended", 0)


def gather(value: object, seconds: float | None = None) -> list:
    """Give every process the values of all, by rank.

    Args:
        value: anything that can be pickled.
        seconds: how long to wait for the others; None for as long as they take.

    Raises:
        PeerLost: another process has ended, or has not come here in time; it must not be called
            upon any more.
    """
    values = [value] * world_size()
    if len(values) > 1:
        _talk(dist.all_gather_object, values, value, seconds=seconds)
    return values


def of_this_machine(value: object) -> object:
    """Give every process the value of the first one on its machine.

    Raises:
        PeerLost: another process has ended.
    """
    host = socket.gethostname()
    told = gather((host, local_rank(), value))
    return next(value for name, number, value in told if (name, number) == (host, 0))


def leaders_in_turn() -> Iterator[bool]:
    """Give the first processes of the machines their turns, in the order of the machines' names.

    Every process of the run must go through all turns.

    Yields:
        Whether it is this process's turn; the next one begins when all have had this one.

    Raises:
        PeerLost: another process has ended.
    """
    told = gather((socket.gethostname(), rank(), local_rank()))
    for leader in sorted((host, number) for host, number, local in told if local == 0):
        yield leader[1] == rank()
        wait_for_all()


def broadcast(value: object) -> object:
    """Give every process rank 0's value, of whatever kind.

    Raises:
        PeerLost: another process has ended.
    """
    box = [value]
    if world_size() > 1:
        _talk(dist.broadcast_object_list, box, 0)
    return box[0]


def complete(rows: Tensor) -> None:
    """Complete a CPU tensor (N, ...), of which every process has filled its `shard`, in place.

    Raises:
        PeerLost: another process has ended.
    """
    for source in range(world_size() if world_size() > 1 else 0):
        part = shard(len(rows), source)
        if part:
            _talk(dist.broadcast, rows[part.start : part.stop], source)


@contextmanager
def one_first() -> Iterator[None]:
    """Let the first process of a machine run the block before the others, for downloads.

    Raises:
        UserError: the block raised it; the others run it all the same.
        PeerLost: another process has ended.
    """
    if local_rank() > 0:
        wait_for_all()
    refused = None
    try:
        yield
    except UserError as error:
        refused = error
    if local_rank() == 0:
        wait_for_all()
    if refused:
        raise refused


def wait_for_all() -> None:
    """Wait until every process of this run has come here.

    Raises:
        PeerLost: another process has ended.
    """
    gather(None)


@contextmanager
def together() -> Iterator[None]:
    """End a block in all processes alike: if one refuses to go on, it says why, and all end.

    Raises:
        UserError: this process raised it in the block.
        SystemExit: another one did; with its exit status.
        PeerLost: another process has ended.
    """
    refused = None
    try:
        yield
    except PeerLost:
        raise
    except UserError as error:
        refused = error
    statuses = gather(refused and refused.status)
    if refused:
        raise refused
    if any(statuses):
        raise SystemExit(max(filter(None, statuses)))


def _talk(collective: object, *args: object, seconds: float | None = None) -> None:
    """Call a collective function; signals are answered meanwhile."""
    with in_contact():
        try:
            call_interruptibly(lambda: collective(*args), seconds)
        except TimeoutError as error:
            raise PeerLost("another process of this run is still at work") from error


@contextmanager
def in_contact() -> Iterator[None]:
    """Let computations that talk to other processes fail as `PeerLost` when one of them is gone.

    Raises:
        PeerLost: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and LOST_CONTACT.search(str(error)):
            raise PeerLost("another process of this run has ended") from error
        raise
