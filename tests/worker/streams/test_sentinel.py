"""The master is the one that the sentinels name, also after another has become it."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import redis

from tests.conftest import free_port
from tests.servers import started
from tests.worker.helpers import eventually
from worker.errors import ConfigurationError, RedisUnreachableError
from worker.producer import connect_async
from worker.settings import RedisSettings
from worker.streams.client import CONNECTION_ERRORS, connect
from worker.streams.redial import RedialledError

MASTER = "plant"


class Watched(NamedTuple):
    master: Any  # the process
    ports: tuple[int, int]
    sentinel: int


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """A master, its replica, and a sentinel that lets the replica take over: not from one that but stands still."""
    first, second, sentinel = free_port(), free_port(), free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {sentinel}\nsentinel monitor {MASTER} 127.0.0.1 {first} 1\n"
        f"sentinel down-after-milliseconds {MASTER} 60000\nsentinel failover-timeout {MASTER} 2000\n"
    )
    with ExitStack() as servers:
        master = servers.enter_context(started(tmp_path, "--port", str(first), "--save", ""))
        eventually(lambda: answers(redis.Redis(port=first)))
        servers.enter_context(
            started(tmp_path, "--port", str(second), "--save", "", "--replicaof", "127.0.0.1", str(first))
        )
        replica: Any = redis.Redis(port=second)
        eventually(lambda: answers(replica) and replica.info("replication")["master_link_status"] == "up")
        servers.enter_context(started(tmp_path, str(configuration), "--sentinel"))
        asked: Any = redis.Redis(port=sentinel, protocol=2)
        eventually(lambda: answers(asked) and asked.sentinel_slaves(MASTER))
        yield Watched(master, (first, second), sentinel)


def answers(server: Any) -> bool:
    try:
        return bool(server.ping())
    except redis.ConnectionError:
        return False


def failed_over(watched: Watched) -> bool:
    asked: Any = redis.Redis(port=watched.sentinel)
    try:
        return bool(asked.execute_command("SENTINEL", "FAILOVER", MASTER))
    except redis.ResponseError:  # it does not know yet how the replica is
        return False


def settings(url: str) -> RedisSettings:
    return RedisSettings.model_validate({"url": url})


def test_the_same_client_reaches_the_new_master_and_adds_nothing_twice(watched: Watched) -> None:
    dead = free_port()  # a sentinel that is down is passed over
    url = f"redis+sentinel://127.0.0.1:{dead},127.0.0.1:{watched.sentinel}/{MASTER}/0"
    client: Any = connect(settings(url))
    assert client.xadd("stream", {"before": "1"})
    eventually(lambda: client.wait(1, 1000) == 1)
    watched.master.kill()
    with pytest.raises(CONNECTION_ERRORS):
        client.xadd("stream", {"lost": "1"})
    asked: Any = redis.Redis(port=watched.sentinel)
    assert asked.execute_command("SENTINEL", "SET", MASTER, "down-after-milliseconds", 500)  # now that it is dead

    def added() -> bool:
        try:
            return bool(client.xadd("stream", {"after": "1"}))
        except CONNECTION_ERRORS:
            return False

    eventually(added)
    fields = [fields for _, fields in redis.Redis(port=watched.ports[1]).xrange("stream")]  # type: ignore[union-attr]  # redis-py's annotations mix its two clients
    assert fields == [{b"before": b"1"}, {b"after": b"1"}]


@pytest.fixture
def guarded(watched: Watched, tmp_path: Path) -> Iterator[str]:
    """The url by way of a sentinel that asks for a password; the servers ask for none."""
    port, configuration = free_port(), tmp_path / "guarded.conf"
    configuration.write_text(
        f"port {port}\nrequirepass of-the-sentinel\nsentinel monitor {MASTER} 127.0.0.1 {watched.ports[0]} 1\n"
    )
    with started(tmp_path, str(configuration), "--sentinel"):
        asked: Any = redis.Redis.from_url(f"redis://:of-the-sentinel@127.0.0.1:{port}", protocol=2)
        eventually(lambda: answers(asked) and asked.sentinel_masters())
        yield f"redis+sentinel://127.0.0.1:{port}/{MASTER}/0"


def test_a_sentinel_that_asks_for_a_password_gets_its_own(guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "sentinel.secret"
    file.write_text("of-the-sentinel\n")
    for login in (
        "sentinel_password=of-the-sentinel",
        "sentinel_username=default&sentinel_password=of-the-sentinel",
        f"sentinel_password_file={file}",
        f"socket_timeout=7&sentinel_password_file={quote(str(file))}",
    ):
        client: Any = connect(settings(f"{guarded}?{login}"))
        assert client.xadd("stream", {"a": "1"})
        assert "of-the-sentinel" not in repr(client.connection_pool.connection_kwargs)
        asyncio.run(added_in_a_loop(f"{guarded}?{login}"))


async def added_in_a_loop(url: str) -> None:
    client = await connect_async(url)
    assert await client.xadd("stream", {"a": "1"})
    await client.aclose()


@pytest.mark.parametrize("login", ["", "?sentinel_password=hunter2", "?password=of-the-sentinel"])
def test_a_sentinel_that_refuses_is_told_with_the_remedy(guarded: str, login: str) -> None:
    with pytest.raises(RedisUnreachableError, match="sentinel_password_file=PATH") as caught:
        connect(settings(guarded + login))
    assert "hunter2" not in str(caught.value)
    assert "of-the-sentinel" not in str(caught.value)


@pytest.mark.parametrize(
    ("login", "told"),
    [
        ("sentinel_password_file=/no/such/file", "sentinel_password_file /no/such/file cannot be read"),
        ("sentinel_password=hunter2&sentinel_password_file=/x", "leave one of them out"),
    ],
)
def test_a_sentinels_password_that_cannot_be_had_is_a_matter_of_configuration(login: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        connect(settings(f"redis+sentinel://127.0.0.1:1/{MASTER}?{login}"))
    assert "hunter2" not in str(caught.value)


def test_a_sentinels_password_is_for_sentinels_alone(redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="options that redis-py knows"):
        connect(settings(f"{redis_url}?sentinel_password=x"))


def test_a_replica_that_was_the_master_is_left(watched: Watched) -> None:
    redialled, told = Event(), list[str]()
    url = f"redis+sentinel://127.0.0.1:{watched.sentinel}/{MASTER}"
    client: Any = connect(settings(url), redialled=redialled)
    assert client.xadd("stream", {"a": "1"})
    eventually(lambda: failed_over(watched))

    def moved() -> bool:
        try:
            client.xadd("stream", {"a": "1"})
        except RedialledError as error:
            told.append(str(error))
            redialled.clear()
            return False
        except CONNECTION_ERRORS:
            return False
        return bool(client.connection_pool.master_address == ("127.0.0.1", watched.ports[1]))

    eventually(moved)
    assert told


def test_a_master_that_no_sentinel_knows_is_told(watched: Watched) -> None:
    with pytest.raises(RedisUnreachableError, match="knows a master of that name") as caught:
        connect(settings(f"redis+sentinel://:hunter2@127.0.0.1:{watched.sentinel}/other"))
    assert "hunter2" not in str(caught.value)


def test_sentinels_that_do_not_answer_are_told() -> None:
    with pytest.raises(RedisUnreachableError, match="start them") as caught:
        connect(settings(f"redis+sentinel://:hunter2@127.0.0.1:{free_port()}/{MASTER}"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("rest", ["127.0.0.1:1", "127.0.0.1:1/", "127.0.0.1:1,/m", "/m", "h:port/m", "h:1/m/x"])
def test_an_address_that_names_no_sentinel_or_master_is_a_matter_of_configuration(rest: str) -> None:
    with pytest.raises(ConfigurationError, match=r"HOST:PORT,HOST:PORT/MASTER/DB") as caught:
        connect(settings(f"redis+sentinel://:hunter2@{rest}"))
    assert "hunter2" not in str(caught.value)
