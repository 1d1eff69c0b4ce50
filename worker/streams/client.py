"""The connection: no silent retries, one protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import Event
from typing import Any

import redis
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.sentinel import MasterNotFoundError, Sentinel

from worker.errors import ConfigurationError, RedisUnreachableError
from worker.settings import RedisSettings
from worker.streams.address import Address, address, shown
from worker.streams.cluster import Cluster
from worker.streams.redial import Redial, RedialledError

OLDEST_VERSION = (6, 2)  # XAUTOCLAIM, XTRIM MINID

CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError, RedialledError)


def connect(settings: RedisSettings, only_adds: bool = False, redialled: Event | None = None) -> redis.Redis:
    """A client that has been answered once.

    redis-py retries writes by default, so that one lost reply would add an entry twice: here nothing is retried, and
    each caller knows what may be repeated.

    Args:
        only_adds: whether the user may lack the right to PING, as a producer's does; to be told so is an answer.
        redialled: is set when a connection would be made in the place of one that ended. Whoever wants one is told by a
            RedialledError then, until it is cleared.

    Raises:
        RedisUnreachableError, ConfigurationError: with the address, less its password.
    """
    with first_answer(settings, only_adds):
        to = address(settings)
        if redialled is not None or to.secure:
            to.options["redis_connect_func"] = Redial(redialled, greet=not to.cluster, secure=to.secure)
        if to.secure:
            to.sentinel_options["redis_connect_func"] = Redial(None, greet=True, secure=True)
        client: redis.Redis = _client(to)  # a Cluster has the same commands
        client.ping()
    return client


@contextmanager
def first_answer(settings: RedisSettings, only_adds: bool = False) -> Iterator[None]:
    """Tells what goes wrong in the block, from reading the address to the answer to PING, as `connect` does."""
    where = shown(settings.url.get_secret_value())
    try:
        yield
    except (ValueError, TypeError):  # their text may quote a password that stands where the port should
        raise ConfigurationError(
            f"redis.url {where} is not an address; expected redis://USER:PASSWORD@HOST:PORT/DB or "
            "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB or redis+cluster://HOST:PORT,HOST:PORT, with options that "
            "redis-py knows"
        ) from None
    except redis.RedisError as error:
        if not (only_adds and isinstance(error, redis.exceptions.NoPermissionError) and "'ping'" in str(error)):
            raise RedisUnreachableError(_told(where, error)) from None


def _client(to: Address) -> Any:
    if to.cluster:
        return Cluster(to.cluster, to.options)
    if not to.sentinels:
        return redis.Redis.from_pool(redis.ConnectionPool(**to.options))
    sentinel_class: Any = Sentinel  # redis-py annotates none of it
    sentinel = sentinel_class(to.sentinels, sentinel_kwargs=to.sentinel_options)
    return sentinel.master_for(to.master, **to.options)  # asks again for each new connection


def _told(where: str, error: redis.RedisError) -> str:
    if isinstance(error, redis.AuthenticationError):
        return f"Redis at {where} refuses redis.url's user or password (or redis.password_file's): {error}"
    if isinstance(error, redis.exceptions.NoPermissionError):
        return f"Redis at {where} lets this user do too little: {error}; grant it what deploy/redis/users.acl does"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"Redis at {where} shows a certificate that does not hold: {error}; set redis.ca_file to the CA that "
            "signed it, and name the host in redis.url as the certificate does"
        )
    if isinstance(
        error, MasterNotFoundError | AsyncMasterNotFoundError
    ):  # it does not say why a sentinel was passed over
        remedy = (
            "redis.url, or redis.ca_file where their certificates do not hold" if "rediss" in where else "redis.url"
        )
        return (
            f"no sentinel at {where} knows a master of that name that is up; start them, or correct {remedy} (where "
            "they want a password: ?sentinel_password_file=PATH)"
        )
    return f"Redis at {where} is not reached: {error}; start it, or set redis.url (MHPC_REDIS__URL)"


def script(*names: str) -> str:
    """One Lua script of the files of those names, in that order; Redis has no way to load one from another."""
    folder = files("worker.streams")
    return "".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
