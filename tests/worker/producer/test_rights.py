"""What a producer can do with the right to XADD alone, as deploy/redis/users.acl gives it."""

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.helpers import encoded, picture
from worker.errors import RedisUnreachableError, WorkerError
from worker.message import Image
from worker.producer import Producer, Retry, connect

IMAGES = [Image("a", "png", encoded(picture()))]


@pytest.fixture
def admin(private_redis: PrivateRedis, line: str) -> redis.Redis:
    admin = redis.Redis(port=private_redis.port, protocol=2)
    admin.acl_setuser("camera", enabled=True, passwords=["+secret"], keys=[key(line)], commands=["+xadd"])
    return admin


@pytest.fixture
def url(private_redis: PrivateRedis, admin: redis.Redis) -> str:
    return private_redis.url.replace("//", "//camera:secret@")


def key(line: str) -> str:
    return f"mhpc:{{{line}}}:images"


def test_who_may_not_even_ping_gets_in_and_sends(url: str, line: str, admin: redis.Redis) -> None:
    assert Producer(connect(url), line, max_ahead=None).send(IMAGES)
    assert Producer(connect(url), line, max_ahead=None, retry=Retry(8)).send(IMAGES)  # the window is the caller's word
    assert admin.xlen(key(line)) == 2


def test_how_far_the_line_is_takes_rights_and_the_error_says_which(url: str, line: str, admin: redis.Redis) -> None:
    producer = Producer(connect(url), line)
    with pytest.raises(WorkerError) as told:
        producer.send(IMAGES)
    for part in ("'xlen'", "+xlen and +xinfo|groups", key(line), "max_ahead=None"):
        assert part in str(told.value)
    assert admin.xlen(key(line)) == 0
    admin.acl_setuser("camera", commands=["+xlen", "+xinfo|groups"])
    assert producer.send(IMAGES)
    assert producer.ahead() == 1


def test_a_wrong_password_does_not_get_in(url: str) -> None:
    with pytest.raises(RedisUnreachableError, match="refuses"):
        connect(url.replace("secret", "wrong"))


def test_another_line_is_refused(url: str, line: str) -> None:
    with pytest.raises(WorkerError, match="Redis refused an entry for line other"):
        Producer(connect(url), "other", max_ahead=None).send(IMAGES)
