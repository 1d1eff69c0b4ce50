"""What may take long, on threads of its own: whoever waits decides for how long. A disk is asked at once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from worker.errors import StoreError

AT_ONCE = 8  # that talk to a store; the others wait for their turn

T = TypeVar("T")

_room = threading.BoundedSemaphore(AT_ONCE)


def begun(work: Callable[[], T], aside: bool) -> "Future[T]":
    """Do it: `aside` on a thread that holds up no end of the process, else before this returns."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result is told
            future.set_exception(error)

    def in_turn() -> None:
        with _room:
            run()

    if aside:
        threading.Thread(target=in_turn, name="store", daemon=True).start()
    else:
        run()
    return future


def waited(work: Callable[[], T], aside: bool, seconds: float, whom: str) -> T:
    """What comes of it, within so many seconds; afterwards nobody waits for it any more.

    Raises:
        StoreError: it takes longer.
    """
    future = begun(work, aside)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # its own
            raise
        raise StoreError(f"{whom} has not answered for {seconds:g} s; is it slow, or away?") from None
