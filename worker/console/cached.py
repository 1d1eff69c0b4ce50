"""Values that many look at and that are read once for all of them."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

ERROR_SECONDS = 1.0  # that an error stands, where a value would stand for longer

T = TypeVar("T")


class Cached(Generic[T]):
    """What `read` gives, at most `seconds` old; an error stands a while, too, so that not all wait out an outage."""

    def __init__(self, seconds: float, read: Callable[[], T]) -> None:
        self.seconds = seconds
        self._read = read
        self._lock = threading.Lock()
        self._value: T
        self._error: Exception | None = None
        self._read_at = float("-inf")
        self.asked_at = time.monotonic()

    def get(self) -> T:
        """The value; raises what reading it raised."""
        self.asked_at = time.monotonic()
        with self._lock:
            stands = self.seconds if self._error is None else min(self.seconds, ERROR_SECONDS)
            if time.monotonic() >= self._read_at + stands:
                try:
                    self._value, self._error = self._read(), None
                except Exception as error:
                    self._error = error
                self._read_at = time.monotonic()
            if self._error is not None:
                raise self._error.with_traceback(None)
            return self._value

    def forget(self) -> None:
        """Read anew the next time."""
        with self._lock:
            self._read_at = float("-inf")
