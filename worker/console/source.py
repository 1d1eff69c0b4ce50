"""Where the page's data comes from: Redis, connected to when it is first asked for, and again after it was away."""

import threading
from functools import lru_cache
from typing import Any

import redis
import structlog

from worker.console.text import cut
from worker.errors import ConfigurationError, RedisUnreachableError
from worker.settings import RedisSettings
from worker.streams.client import CONNECTION_ERRORS, connect

log = structlog.get_logger()

AWAY = (*CONNECTION_ERRORS, RedisUnreachableError, ConfigurationError)  # the last: a password's file is read anew


class Source:
    """A client for all threads; redis-py's pool gives each call a connection of its own."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def client(self) -> Any:
        """Raises RedisUnreachableError while it cannot be reached."""
        with self._lock:
            if self._client is None:
                self._client = connect(self.settings)
            return self._client


def why_unread(error: Exception) -> str:
    """What a person is told where Redis did not give what was asked for."""
    if isinstance(error, redis.exceptions.NoPermissionError):
        return (
            f"Redis lets the console's user do too little: {error}; it needs what deploy/redis/users.acl gives `reader`"
        )
    if isinstance(error, AWAY):
        away = f"Redis is away: {error}" if isinstance(error, CONNECTION_ERRORS) else str(error)
        return f"{away.rstrip('.')}. This page goes on by itself when that has passed."
    return f"Redis refuses: {error}"


def failed(error: Exception) -> str:
    """What a person is told of an error that nobody thought of; the log has where it came from."""
    told = f"the console cannot make sense of what Redis holds: {type(error).__name__}: {cut(str(error), 200)}"
    log_once(told)
    return told


@lru_cache(64)
def log_once(told: str) -> None:
    """With the traceback; what is read each second would else fill the log."""
    log.exception(told)
