"""Who runs a process, what libraries find in it as they load, how it keeps memory. Imports neither NumPy nor torch."""

import ctypes
import gc
import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

# torch's tensors of 2 MiB and more on huge pages: fresh memory, of which learning takes a lot, costs half as much time.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
# NumPy's products here are small: threads of its own would only fight torch's for the cores.
# Between parallel regions libgomp's threads spin, by default so long that decoding, publishing and Redis wait for a
# core: on two cores `tiny` scores a third more images so (docs/performance.md).
OF_A_WORKER = {"OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000", **HUGE_PAGES}

MIB = 1024 * 1024
# How glibc's malloc keeps memory: the variable by which the environment may say so, mallopt's number, a worker's value.
MALLOC = {
    # By default each thread that decodes or publishes has a heap of its own, which keeps the most that it ever held: a
    # burst larger than those before it, on any thread, adds to resident memory for good, and such come for months. The
    # one heap that all share has room for it, since it is laid out for a batch's tensors.
    "MALLOC_ARENA_MAX": (-8, 1),
    # The most that malloc gets to by itself, by what it sees freed. Until then it gives back what the next batch wants
    # again, and a small block that lies above it holds it up another time: resident memory went up and down by steps of
    # MiBs. Less than this is no remedy: a batch's tensors would be mapped anew each time, which costs CPU time.
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * MIB),
    "MALLOC_TRIM_THRESHOLD_": (-1, 64 * MIB),
}


def set_unless_set(variables: dict[str, str]) -> None:
    """Whoever starts the process has the last word."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def steady_memory() -> None:
    """Have malloc keep memory as MALLOC says, where the environment says nothing; before there are threads.

    An allocator other than glibc's has ways of its own, and is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for name, (parameter, value) in MALLOC.items():
        if name not in os.environ and f"glibc.malloc.{name[7:].strip('_').lower()}=" not in tunables:
            mallopt(parameter, value)


@contextmanager
def uncollected() -> Iterator[None]:
    """Import libraries without the garbage collector, and keep it away from what they made.

    They leave half a million objects that stay, and few that go: each collection on the way goes through them for
    nothing, which takes a fifth of the time of importing torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze() -> None:
    """Free what nobody refers to any more, of all that the collector looks through, and keep it away from the rest.

    It stays: each full collection would go through all of it again, 0.15 s that answers wait.
    """
    gc.collect()
    gc.freeze()


def collect() -> None:
    """As `freeze`, but of what the collector was kept away from, too."""
    gc.unfreeze()
    freeze()


def user_name() -> str:
    """Of who runs this; a container's users may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return f"uid {os.getuid()}"
