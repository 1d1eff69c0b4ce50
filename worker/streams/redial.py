"""Tells of connections that are made again.

One that ended while nobody used it redis-py makes anew without a word. Who answers then may be another server than
before, a replica that took over without the last writes, or one that was emptied.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet


class Redial:
    """What redis-py calls for each connection that it has made.

    Args:
        tell: is called for a connection that there was before.
        greet: whether to send what opens a connection, login and database; a Cluster's client does that itself.
    """

    def __init__(self, tell: Callable[[], object], greet: bool) -> None:
        self.tell = tell
        self.greet = greet
        self._met: WeakSet[Any] = WeakSet()

    def __call__(self, connection: Any) -> None:
        if self.greet:
            connection.on_connect()
        if connection in self._met:
            self.tell()
        self._met.add(connection)
