"""Opens connections, and tells of those that are made again.

One that ended while nobody used it redis-py makes anew without a word. Who answers then may be another server than
before, a replica that took over without the last writes, or one that was emptied.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import redis


class Redial:
    """What redis-py calls for each connection that it has made.

    Args:
        tell: is called for a connection that there was before.
        greet: whether to send what opens a connection, login and database; a Cluster's client does that itself.
        secure: whether it is by TLS: then something is asked first, so that the server's session tickets (RFC 8446,
            4.6.1) are read. With hiredis, redis-py gives up a connection on which they wait, as if an answer did.
    """

    def __init__(self, tell: Callable[[], object] | None, greet: bool, secure: bool = False) -> None:
        self.tell = tell
        self.greet = greet
        self.secure = secure
        self._met: WeakSet[Any] = WeakSet()

    def __call__(self, connection: Any) -> None:
        if self.greet:
            connection.on_connect()
        if self.secure:
            connection.send_command("PING", check_health=False)
            with suppress(redis.ResponseError):  # who may but add pictures has no right to it
                connection.read_response()
        if self.tell is not None and connection in self._met:
            self.tell()
        self._met.add(connection)
