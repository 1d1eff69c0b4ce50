import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from pydantic import SecretStr

from tests.conftest import PrivateRedis, free_port
from tests.worker.helpers import LosesReplies
from worker.errors import ConfigurationError, RedisUnreachableError
from worker.settings import RedisSettings
from worker.streams.address import shown
from worker.streams.client import CONNECTION_ERRORS, connect, script


def settings(url: str) -> RedisSettings:
    return RedisSettings(url=SecretStr(url))


@pytest.fixture
def proxy(private_redis: PrivateRedis) -> Iterator[LosesReplies]:
    proxy = LosesReplies(private_redis.port, lambda command: b"XADD" in command)
    yield proxy
    proxy.close()


def test_a_client_has_been_answered(redis_url: str) -> None:
    assert connect(settings(redis_url)).ping()


def test_a_write_whose_reply_was_lost_is_not_repeated(proxy: LosesReplies, private_redis: PrivateRedis) -> None:
    client = connect(settings(f"redis://127.0.0.1:{proxy.port}/0"))
    with pytest.raises(CONNECTION_ERRORS):
        client.xadd("stream", {"a": "b"})
    assert proxy.lost == 1
    assert redis.Redis(port=private_redis.port).xlen("stream") == 1
    assert client.ping()


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    port = free_port()
    with pytest.raises(RedisUnreachableError) as caught:
        connect(settings(f"redis://user:hunter2@127.0.0.1:{port}/0"))
    assert "hunter2" not in str(caught.value)
    for part in (f"redis://127.0.0.1:{port}/0", "MHPC_REDIS__URL", "start it"):
        assert part in str(caught.value)


def test_a_password_that_is_wrong_is_told_as_such_and_not_shown(private_redis: PrivateRedis) -> None:
    redis.Redis(port=private_redis.port).config_set("requirepass", "right")
    with pytest.raises(RedisUnreachableError, match="refuses") as caught:
        connect(settings(f"redis://:hunter2@127.0.0.1:{private_redis.port}/0"))
    assert "hunter2" not in str(caught.value)
    assert connect(settings(f"redis://:right@127.0.0.1:{private_redis.port}/0")).ping()


def test_a_password_that_is_missing_is_told(private_redis: PrivateRedis) -> None:
    redis.Redis(port=private_redis.port).config_set("requirepass", "right")
    with pytest.raises(RedisUnreachableError, match="refuses"):
        connect(settings(private_redis.url))


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@127.0.0.1:port/0", "redis://:hunter2@127.0.0.1:6379/0?socket_timeout=x"]
)
def test_an_address_that_cannot_be_read_is_a_matter_of_configuration(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"redis\.url") as caught:
        connect(settings(url))
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_no_redis_is_not_reached() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with suppress(OSError):
            while True:
                caller, _ = listener.accept()
                caller.recv(1024)
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                caller.close()

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(RedisUnreachableError, match="is not reached"):
        connect(settings(f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))
    listener.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:p@ss@h:1/2", "rediss://h:1/2"),
        ("unix://:pass@/run/redis.sock", "unix:///run/redis.sock"),
        ("redis://h/0?password=hunter2", "redis://h/0"),
        ("redis://user:pa?ss@h/0", "redis://h/0"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, expected: str) -> None:
    assert shown(url) == expected


@pytest.mark.parametrize(
    "name", ["gate", "acquire", "fenced", "claim", "lost", "seen", "replay", "mark", "groups", "announce", "unkept"]
)
def test_the_scripts_are_in_the_package(name: str, client: redis.Redis) -> None:
    assert client.script_load(script(name))
