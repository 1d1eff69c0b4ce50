"""What the service manager is told: sd_notify(3), datagrams to the socket that NOTIFY_SOCKET names."""

import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from worker.errors import ConfigurationError

FEEDS = 4  # signs of life in the time that the manager allows

log = structlog.get_logger()


class Notifier:
    """Tells systemd, or who speaks its protocol, how the process is; nobody listens where NOTIFY_SOCKET is not set.

    Raises:
        ConfigurationError: NOTIFY_SOCKET or WATCHDOG_USEC is nothing that a service manager sets.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._every = _watchdog_seconds(environ) / FEEDS  # 0: no watchdog
        self._feed_at = 0.0
        self._deaf = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def tell(self, *assignments: str) -> None:
        """Send such as "READY=1", "STATUS=..."; a manager that does not take it holds nobody up, and is logged once."""
        if not self._address:
            return
        try:
            self._socket.sendto("\n".join(assignments).encode(), socket.MSG_DONTWAIT, self._address)
            self._deaf = False
        except OSError as error:
            if not self._deaf:
                log.warning("the service manager is not reached", socket=self._address, error=str(error))
            self._deaf = True

    def feed(self, since: float = math.inf) -> None:
        """A sign of life, as often as the watchdog asks; for the loop that it watches to call, and for nothing else.

        Args:
            since: when what the loop has threads do was begun. What takes as long as the watchdog waits hangs.
        """
        now = time.monotonic()
        if self._every and now >= self._feed_at and now - since < FEEDS * self._every:
            self._feed_at = now + self._every
            self.tell("WATCHDOG=1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is read anew within; what comes of it, the process then goes on."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.tell("READY=1")


def _address(path: str) -> str:
    if path and path[0] not in "/@":
        raise ConfigurationError(
            f"NOTIFY_SOCKET is {path!r:.80}, expected an absolute path, or @NAME of an abstract socket; "
            "leave it to the service manager, or unset it"
        )
    return f"\0{path[1:]}" if path.startswith("@") else path


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """How long the manager waits for a sign of life; 0 where it asks for none, or asks another process."""
    allowed, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not allowed or pid not in ("", str(os.getpid())):
        return 0.0
    if not allowed.isdecimal() or not int(allowed):
        raise ConfigurationError(
            f"WATCHDOG_USEC is {allowed!r:.80}, expected microseconds; leave it to the service manager, or unset it"
        )
    return int(allowed) / 1e6
