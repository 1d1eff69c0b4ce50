"""Who keeps state of its own goes on over no connection that was made again, unless it has looked; others do."""

from threading import Event
from typing import Any

import pytest
import redis

from worker.settings import RedisSettings
from worker.streams.client import CONNECTION_ERRORS, connect
from worker.streams.redial import RedialledError


def connected(url: str, redialled: Event | None = None) -> Any:
    return connect(RedisSettings.model_validate({"url": url}), redialled=redialled)


def ended(url: str, client_id: int) -> None:
    """A connection ends while nobody uses it."""
    redis.Redis.from_url(url).client_kill_filter(_id=str(client_id))


@pytest.fixture
def redialled() -> Event:
    return Event()


@pytest.fixture
def client(redis_url: str, redialled: Event) -> Any:
    return connected(redis_url, redialled)


def test_what_is_asked_over_a_connection_that_is_made_again_is_not_sent(
    client: Any, redialled: Event, redis_url: str, line: str
) -> None:
    here = client.client_id()
    ended(redis_url, here)
    with pytest.raises(RedialledError, match="another server"):
        client.incr(line)
    assert redialled.is_set()
    redialled.clear()
    assert client.incr(line) == 1
    ended(redis_url, client.client_id())
    with pytest.raises(CONNECTION_ERRORS):
        client.pipeline(transaction=False).incr(line).incr(line).execute()
    redialled.clear()
    assert client.incr(line) == 2  # and so again
    assert client.client_id() != here


def test_until_somebody_looks_no_connection_is_made(client: Any, redialled: Event, redis_url: str) -> None:
    pool = client.connection_pool
    first, second = pool.get_connection(), pool.get_connection()  # each for the first time: nothing is told
    assert not redialled.is_set()
    pool.release(first)
    ended(redis_url, client.client_id())
    for _ in range(3):  # whoever comes next, on whichever thread
        with pytest.raises(RedialledError):
            client.ping()
    pool.release(second)
    assert client.ping()  # by that one, which has not ended
    redialled.clear()
    assert [pool.get_connection().is_connected for _ in range(2)] == [True, True]


def test_who_keeps_no_state_goes_on_over_the_next_connection(redis_url: str) -> None:
    client = connected(redis_url)
    here = client.client_id()
    ended(redis_url, here)
    assert client.client_id() != here
