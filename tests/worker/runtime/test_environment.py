"""How a worker keeps memory, as malloc itself tells it, in a process of its own each time; what its collector sees."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from worker.runtime.environment import uncollected

# Threads that hold memory at once, then a tensor's worth that comes and goes; mallinfo2 knows all heaps, malloc_info
# counts them, hblkhd is what lies outside them.
HEAPS_AND_BYTES_KEPT = """
import ctypes, os, tempfile, threading
from worker.runtime.environment import steady_memory

steady_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c hblkhd d e uordblks fordblks f".split()]

libc.mallinfo2.restype = Info
held = threading.Barrier(4)

def hold():
    ctypes.memset(block := ctypes.c_void_p(libc.malloc(5000)), 1, 5000)
    held.wait()
    libc.free(block)

threads = [threading.Thread(target=hold) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
outside = libc.mallinfo2().hblkhd
block = ctypes.c_void_p(libc.malloc(16 << 20))
mapped = libc.mallinfo2().hblkhd - outside
libc.free(block)
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    heaps = open(file.name).read().count("<heap nr=")
print(heaps, mapped >> 20, libc.mallinfo2().fordblks >> 20)
"""

glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is of Linux")


def heaps_and_mib(**environment: str) -> tuple[int, int, int]:
    """Heaps; MiB that a block of 16 MiB has mapped outside of them; MiB that lie free in them once it is freed."""
    found = subprocess.run(
        [sys.executable, "-c", HEAPS_AND_BYTES_KEPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    heaps, mapped, free = map(int, found.stdout.split())
    return heaps, mapped, free


@glibc
def test_all_threads_share_one_heap_which_keeps_what_a_batch_needs_again() -> None:
    heaps, mapped, free = heaps_and_mib()
    assert (heaps, mapped) == (1, 0)
    assert free >= 16


@glibc
@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "3", "MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=3:glibc.malloc.mmap_threshold=1048576"},
    ],
)
def test_who_starts_the_process_has_the_last_word_on_its_memory(environment: dict[str, str]) -> None:
    heaps, mapped, _ = heaps_and_mib(**environment)
    assert heaps == 3
    assert mapped >= 16


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("error", [None, ImportError])
def test_what_is_imported_is_not_looked_through_and_what_comes_after_it_is(error: type[Exception] | None) -> None:
    with suppress(ImportError), uncollected():
        assert not gc.isenabled()
        stays = [object()]
        if error is not None:
            raise error
    assert gc.isenabled()
    made = [object()]
    looked_through = {id(thing) for thing in gc.get_objects()}
    assert id(stays) not in looked_through
    assert id(made) in looked_through
