"""The connection: no silent retries, one protocol."""

from importlib.resources import files

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import ConfigurationError, RedisUnreachableError
from worker.settings import RedisSettings

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 15.0  # longer than any BLOCK
OLDEST_VERSION = (6, 2)  # XAUTOCLAIM, XTRIM MINID

CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError)


def connect(settings: RedisSettings) -> redis.Redis:
    """A client that has been answered once.

    redis-py retries writes by default, so that one lost reply would add an entry twice: here nothing is retried, and
    each caller knows what may be repeated. RESP2 keeps the replies' shapes the same for all servers.

    Raises:
        RedisUnreachableError, ConfigurationError: with the address, less its password.
    """
    url = settings.url.get_secret_value()
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=REPLY_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
        )
        client.ping()
    except (ValueError, TypeError):  # their text may quote a password that stands where the port should
        raise ConfigurationError(
            f"redis.url {shown(url)} is not an address; expected redis://USER:PASSWORD@HOST:PORT/DB, "
            "with options that redis-py knows"
        ) from None
    except redis.AuthenticationError as error:
        raise RedisUnreachableError(f"Redis at {shown(url)} refuses redis.url's user or password: {error}") from None
    except redis.RedisError as error:
        raise RedisUnreachableError(
            f"Redis at {shown(url)} is not reached: {error}; start it, or set redis.url (MHPC_REDIS__URL)"
        ) from None
    return client


def shown(url: str) -> str:
    """The address without user, password and options (one of which is a password, too)."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def script(*names: str) -> str:
    """One Lua script of the files of those names, in that order; Redis has no way to load one from another."""
    folder = files("worker.streams")
    return "".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
