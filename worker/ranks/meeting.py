"""How the ranks that torchrun has started find each other, also those of a start after the first."""

import secrets
import time
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from worker.errors import RanksError, one_line

LOOK_SECONDS = 0.05


class Store(Protocol):
    """What is used of torch's own."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


def join(backend: str, seconds: float) -> None:
    """Make the process group of all ranks; it takes one for gone that is silent for so many seconds.

    torchrun keeps its store for all its starts, and a rank that reads there where another one listened in the start
    before waits for nobody. So the ranks first agree on a name for this start.

    Raises:
        RanksError: not all came in time.
    """
    timeout = timedelta(seconds=seconds)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        this_start = PrefixStore(_named(store, rank, size, time.monotonic() + seconds), store)
        dist.init_process_group(backend, store=this_start, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise RanksError(f"the ranks do not find each other: {one_line(error, 300)}") from None


def _named(store: Store, rank: int, size: int, deadline: float) -> str:
    """The name of this start, which rank 0 gives.

    1. Each rank puts down a word that nobody has used before.
    2. Rank 0 puts up its own, which is the name, with the words that it finds; again where they change.
    3. Who finds its own word beside a name knows that this name is of this start, and writes it behind its rank.
    4. Rank 0 knows that all have understood once all have written its name.
    """
    word = secrets.token_hex(8)
    store.set(f"came/{rank}", word)
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("start", " ".join([word, *(_read(store, f"came/{other}") for other in range(1, size))]))
            if all(_read(store, f"understood/{other}") == word for other in range(1, size)):
                return word
        else:
            name, *came = _read(store, "start").split(" ")
            if len(came) == size - 1 and came[rank - 1] == word:
                store.set(f"understood/{rank}", name)
                return name
        time.sleep(LOOK_SECONDS)
    raise RanksError("the ranks do not find each other: not all came in time; look for what the others said")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
