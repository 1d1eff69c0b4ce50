"""The proxy breaks what it is told to break, and nothing else."""

import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import PrivateRedis
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually

SCRIPT = "return redis.call('RPUSH', KEYS[1], ARGV[1])"


@pytest.fixture
def proxy(private_redis: PrivateRedis) -> Iterator[Proxy]:
    proxy = Proxy(private_redis.port)
    yield proxy
    proxy.close()


@pytest.fixture
def server(private_redis: PrivateRedis) -> redis.Redis:
    """Past the proxy."""
    return redis.Redis(port=private_redis.port, protocol=2)


@pytest.fixture
def through(proxy: Proxy) -> redis.Redis:
    """It waits for what never comes, too, but long enough for what comes on a busy machine."""
    return redis.Redis.from_url(proxy.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=5.0)


def test_what_is_not_broken_passes_whole(through: redis.Redis) -> None:
    value = bytes(range(256)) * 8192
    assert through.set("a", value)
    assert through.get("a") == value
    assert through.get("absent") is None
    entry = through.xadd("s", {"f": b"\r\n*1\r\n"})
    assert through.xread({"s": "0"}) == [[b"s", [(entry, {b"f": b"\r\n*1\r\n"})]]]
    pipe = through.pipeline()
    pipe.rpush("l", 1, 2)
    pipe.lrange("l", 0, -1)
    assert pipe.execute() == [2, [b"1", b"2"]]
    with pytest.raises(redis.ResponseError):
        through.hgetall("l")


def test_a_write_whose_reply_is_dropped_has_happened_and_its_client_lost_the_connection(
    proxy: Proxy, through: redis.Redis, server: redis.Redis
) -> None:
    proxy.drop_reply(b"rpush", times=2)
    for done in (1, 2):
        with pytest.raises(redis.ConnectionError):
            through.rpush("l", done)
        assert server.llen("l") == done
    assert proxy.dropped == 2
    assert through.rpush("l", 3) == 3


def test_a_pipeline_loses_the_chosen_reply_and_those_behind_it_and_has_happened_whole(
    proxy: Proxy, through: redis.Redis, server: redis.Redis
) -> None:
    proxy.drop_reply(b"RPUSH", b"chosen")
    pipe = through.pipeline(transaction=False)
    for value in ("before", "chosen", "behind"):
        pipe.rpush("l", value)
    with pytest.raises(redis.ConnectionError):
        pipe.execute()
    assert eventually(lambda: server.lrange("l", 0, -1) == [b"before", b"chosen", b"behind"])
    assert proxy.dropped == 1


def test_a_script_is_told_by_its_arguments(proxy: Proxy, through: redis.Redis, server: redis.Redis) -> None:
    push = through.register_script(SCRIPT)
    assert push(["l"], ["commit"]) == 1
    proxy.drop_reply(b"EVALSHA", b"commit")
    assert push(["l"], ["commits"]) == 2
    with pytest.raises(redis.ConnectionError):
        push(["l"], ["commit"])
    assert server.llen("l") == 3


def test_a_cut_ends_each_connection_and_refuses_others_until_it_is_mended(proxy: Proxy, through: redis.Redis) -> None:
    assert through.ping()
    proxy.cut()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            through.ping()
    assert proxy.refused >= 2
    proxy.mend()
    assert through.ping()


def test_half_open_takes_a_command_answers_nothing_and_passes_nothing_on(
    proxy: Proxy, through: redis.Redis, server: redis.Redis
) -> None:
    assert through.ping()
    proxy.half_open()
    with pytest.raises(redis.TimeoutError):
        through.set("a", 1)
    proxy.mend()
    assert through.ping()
    assert not server.exists("a")


def test_a_delay_holds_replies_back(proxy: Proxy, through: redis.Redis) -> None:
    assert through.ping()
    proxy.delay(0.2)
    began = time.monotonic()
    assert through.ping()
    assert time.monotonic() - began >= 0.2
    proxy.delay(30)
    with pytest.raises(redis.TimeoutError):
        through.ping()


def test_what_is_held_arrives_late_also_where_nobody_waits_for_it_any_more(
    proxy: Proxy, through: redis.Redis, server: redis.Redis
) -> None:
    proxy.hold(b"rpush", b"chosen")
    assert through.rpush("l", "before") == 1
    with pytest.raises(redis.TimeoutError):
        through.rpush("l", "chosen")
    assert proxy.holds
    with pytest.raises(redis.TimeoutError):
        through.ping()
    assert server.lrange("l", 0, -1) == [b"before"]
    proxy.mend()
    assert eventually(lambda: server.lrange("l", 0, -1) == [b"before", b"chosen"])
    assert through.rpush("l", "after") == 3
