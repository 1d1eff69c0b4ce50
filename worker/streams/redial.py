"""Opens connections, and stops whoever would go on over one that was made again.

One that ended while nobody used it redis-py makes anew without a word. Who answers then may be another server than
before, a replica that took over without the last writes, or one that was emptied.
"""

from contextlib import suppress
from threading import Event
from typing import Any
from weakref import WeakSet

import redis


class RedialledError(redis.RedisError):
    """A connection had ended, and was made again: what was to be asked over it was not sent.

    It is no redis.ConnectionError: for one of those a Cluster's client looks for another node, and then goes on.
    """


class Redial:
    """What redis-py calls for each connection that it has made.

    Args:
        redialled: is set when a connection is made that there was before. Until it is cleared none is made, on any
            thread: whoever clears it looks first what the server has.
        greet: whether to send what opens a connection, login and database; a Cluster's client does that itself.
        secure: whether it is by TLS: then something is asked first, so that the server's session tickets (RFC 8446,
            4.6.1) are read. With hiredis, redis-py gives up a connection on which they wait, as if an answer did.
    """

    def __init__(self, redialled: Event | None, greet: bool, secure: bool = False) -> None:
        self.redialled = redialled
        self.greet = greet
        self.secure = secure
        self._met: WeakSet[Any] = WeakSet()

    def __call__(self, connection: Any) -> None:
        """Raises RedialledError, which ends the connection."""
        if self.greet:
            connection.on_connect()
        if self.secure:
            connection.send_command("PING", check_health=False)
            with suppress(redis.ResponseError):  # who may but add pictures has no right to it
                connection.read_response()
        if self.redialled is None:
            return
        if connection in self._met:
            self._met.discard(connection)
            self.redialled.set()
        if self.redialled.is_set():
            raise RedialledError("a connection to Redis had ended, and was made again: it may be another server")
        self._met.add(connection)
