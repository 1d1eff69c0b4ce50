"""Signs of life, of the work loop and of the threads that work for it, and what goes by them."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from worker.runtime.crashes import CrashFile
from worker.runtime.notify import Notifier

STALLED_SECONDS = 120.0  # without a sign of life, the process is not well

Given = TypeVar("Given")
Made = TypeVar("Made")


class Pulse:
    """For /healthz, for the service manager's watchdog, and for the process's own end, which needs no supervisor."""

    def __init__(self, manager: Notifier, crash_file: CrashFile) -> None:
        self.manager = manager
        self.crash_file = crash_file
        self.at = time.monotonic()
        self.seconds = STALLED_SECONDS  # after which the process ends itself

    def beat(self, since: float) -> None:
        """The loop turns; `since`: when the oldest thing was begun that threads are at, now if there is none."""
        self.at = since
        self.manager.feed(since)
        self.crash_file.watch(since, self.seconds)

    def alive(self) -> str:
        """What is the matter, for a probe."""
        stalled = time.monotonic() - self.at
        return f"no turn of the work loop for {stalled:.0f} s" if stalled > STALLED_SECONDS else ""


class Timed(Generic[Given, Made]):
    """A function that threads call, which knows since when."""

    def __init__(self, function: Callable[[Given], Made]) -> None:
        self.function = function
        self._begun: dict[int, float] = {}  # by thread

    def __call__(self, given: Given) -> Made:
        thread = threading.get_ident()
        self._begun[thread] = time.monotonic()
        try:
            return self.function(given)
        finally:
            del self._begun[thread]

    @property
    def since(self) -> float:
        """When the oldest call was begun that has not returned, by the monotonic clock; now if there is none."""
        return min(list(self._begun.values()), default=time.monotonic())
