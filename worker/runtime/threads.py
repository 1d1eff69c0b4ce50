"""How many threads torch has on a thread of ours, and which of them the system prefers."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

BEHIND = 5  # niceness: a third of the weight of what is preferred


def compute_on(threads: int) -> None:
    """Have torch compute on so many threads where it is called from this thread; for those that a pool starts.

    torch keeps the number per thread only once the thread has read it; until then it is what any other has set last.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """Have torch compute on so many threads within the block, where it is called from this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_behind(threads: int) -> None:
    """As `compute_on`, at a lower priority: where all cores compute, other threads need not wait for one."""
    compute_on(threads)
    if sys.platform == "linux":  # elsewhere niceness is that of the whole process
        this = threading.get_native_id()
        with suppress(OSError):  # of a filter of system calls: then none is preferred
            os.setpriority(os.PRIO_PROCESS, this, os.getpriority(os.PRIO_PROCESS, this) + BEHIND)
