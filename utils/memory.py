"""How the process gets memory from the system."""

import ctypes
import platform
from pathlib import Path

import psutil
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

CONTROL_GROUPS = Path("/sys/fs/cgroup")  # Linux, version 2

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def _c_library() -> ctypes.CDLL | None:
    """The C library where it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next tensors instead of returning it to the system.

    By default glibc returns every block above 32 MB at once, and the system then clears each page
    of the next one as it is first touched; that took up to a third of the enhancer's time and two
    thirds of a training step's. The process keeps its peak size until it ends or until
    `release_freed_memory`. All threads share what is kept; one that ran before has memory of its
    own. Elsewhere than on glibc nothing changes.
    """
    if libc := _c_library():
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group if less."""
    free = psutil.virtual_memory().available
    try:  # containers and cluster jobs are such groups, one in another
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        for folder in (place := CONTROL_GROUPS / group.lstrip("/"), *place.parents):
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                used = int((folder / "memory.current").read_text())
                free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # the root of the groups has no limit, nor has another system
    return free


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process had at a time: tensors of a GPU, else all of its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release_freed_memory() -> None:
    """Return freed memory to the system now.

    Tensors of many different sizes leave gaps behind that nothing fits into: glibc had kept 900 MB
    after 14 photographs of half a megapixel, 90 MB when told to release it after each.
    """
    if libc := _c_library():
        libc.malloc_trim(0)
