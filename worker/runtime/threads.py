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

    The number is a thread's own only once the thread has asked for it: until then it is what any other has set last.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """The same for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_behind(threads: int) -> None:
    """The same, after what other threads have to do: where all cores compute, those wait for none."""
    compute_on(threads)
    if sys.platform == "linux":  # elsewhere niceness is that of the whole process
        this = threading.get_native_id()
        with suppress(OSError):  # of a filter of system calls: then none is preferred
            os.setpriority(os.PRIO_PROCESS, this, os.getpriority(os.PRIO_PROCESS, this) + BEHIND)
