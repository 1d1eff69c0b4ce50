"""Who keeps state of its own is told when a connection is made again, also where redis-py says nothing of it."""

from typing import Any

import redis

from worker.settings import RedisSettings
from worker.streams.client import connect


def test_a_connection_that_ended_while_nobody_used_it_is_told_and_one_that_is_new_is_not(redis_url: str) -> None:
    told = list[bool]()
    client: Any = connect(RedisSettings.model_validate({"url": redis_url}), redialled=lambda: told.append(True))
    here = client.client_id()
    assert told == []
    redis.Redis.from_url(redis_url).client_kill_filter(_id=here)
    assert client.client_id() != here  # redis-py raises nothing
    assert told == [True]
    other = client.connection_pool.get_connection(), client.connection_pool.get_connection()  # one of them is new
    assert told == [True]
    for connection in other:
        client.connection_pool.release(connection)
