"""What may take long, on threads of its own: whoever waits decides for how long."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from worker.errors import StoreError

AT_ONCE = 8  # threads that talk to a store; what more there is waits for its turn

T = TypeVar("T")

_waiting = SimpleQueue[Callable[[], None]]()
_threads = list[threading.Thread]()
_hiring = threading.Lock()


def start(work: Callable[[], T], aside: bool) -> "Future[T]":
    """Run `work`: `aside` on a daemon thread, which holds up no end of the process, else before this returns."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result is told
            future.set_exception(error)

    if aside:
        _waiting.put(run)
        _hire()
    else:
        run()
    return future


def _hire() -> None:
    with _hiring:
        if len(_threads) < AT_ONCE:
            _threads.append(threading.Thread(target=_serve, name="store", daemon=True))
            _threads[-1].start()


def _serve() -> None:
    while True:
        _waiting.get()()


def run_within(work: Callable[[], T], aside: bool, seconds: float, whom: str) -> T:
    """The result of `work`, which `start` runs; after so many seconds nobody waits for it any more.

    Raises:
        StoreError: it takes longer.
    """
    future = start(work, aside)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # its own
            raise
        raise StoreError(f"{whom} has not answered for {seconds:g} s; is it slow, or away?") from None
