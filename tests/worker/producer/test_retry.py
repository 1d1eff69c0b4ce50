"""An entry that is sent again is answered once: the replies are lost for real, and the worker is a real one."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import DEADLINE_SECONDS, encoded, eventually, picture
from tests.worker.playing import answered, results
from tests.worker.turning import Run
from worker.errors import ConfigurationError, FateUnknownError, RedisUnreachableError
from worker.message import Image
from worker.producer import Producer, Retry, connect, flow, produce
from worker.settings import Settings

WINDOW = 64
IMAGES = 24


@pytest.fixture
def camera(proxy: Proxy) -> Iterator[redis.Redis]:
    """Its way to Redis breaks."""
    client = connect(f"{proxy.url}?socket_timeout=60")
    yield client
    client.close()


@pytest.fixture
def impatient(proxy: Proxy) -> Iterator[redis.Redis]:
    """A camera that waits for a reply a second at most."""
    client = connect(f"{proxy.url}?socket_timeout=1")
    yield client
    client.close()


def images(first: int = 0, count: int = IMAGES) -> list[Image]:
    return [Image(str(number), "png", encoded(picture(number))) for number in range(first, first + count)]


def set_once(stop: threading.Event, what: Callable[[], object]) -> None:
    """Set it as soon as `what` gives something true, from another thread."""

    def watch() -> None:
        eventually(what)
        stop.set()

    threading.Thread(target=watch).start()


def once(client: redis.Redis, line: str, count: int = IMAGES) -> bool:
    """Whether each image was answered once, after the last was answered and nothing is left to be."""
    answered(client, line, count)
    eventually(lambda: client.xpending(f"mhpc:{{{line}}}:images", "mhpc")["pending"] == 0)
    return Counter(result["id"] for result in results(client, line)) == {str(i): 1 for i in range(count)}


def test_replies_that_are_lost_again_and_again_leave_each_image_answered_once(
    run: Run, settings: Callable[..., Settings], camera: redis.Redis, proxy: Proxy, client: redis.Redis, line: str
) -> None:
    metrics = run(settings(line, streams={"unique_ids": WINDOW})).metrics.registry
    skipped = {"line": line, "outcome": "skipped"}
    producer = Producer(camera, line, retry=Retry(WINDOW))
    for first in range(0, IMAGES, 8):
        proxy.drop_reply(b"XADD", times=2)
        produce(producer, images(first, 8), batch=4)
    assert proxy.dropped == 6
    assert once(client, line)
    eventually(lambda: metrics.get_sample_value("mhpc_images_total", skipped) == 6 * 4)  # six entries came again


def test_a_network_that_is_gone_and_a_server_that_is_silent_leave_each_image_answered_once(
    run: Run, settings: Callable[..., Settings], impatient: redis.Redis, proxy: Proxy, client: redis.Redis, line: str
) -> None:
    run(settings(line, streams={"unique_ids": WINDOW}))
    producer = Producer(impatient, line, retry=Retry(WINDOW))
    produce(producer, images(0, 8), batch=4)
    for break_it, first in ((proxy.cut, 8), (proxy.half_open, 16)):
        break_it()
        sending = threading.Thread(target=produce, args=(producer, images(first, 8)), kwargs={"batch": 4})
        sending.start()
        time.sleep(0.5)  # how long it lasts is what is tried
        proxy.mend()
        sending.join(30)
        assert not sending.is_alive()
    assert once(client, line)


def test_without_retry_an_entry_whose_reply_was_lost_is_named_and_not_sent_again(
    camera: redis.Redis, proxy: Proxy, client: redis.Redis, line: str
) -> None:
    producer = Producer(camera, line)
    proxy.drop_reply(b"XADD")
    with pytest.raises(FateUnknownError, match=r"while 0 to 2 went out: .*; nobody knows whether they arrived") as told:
        producer.send(images(0, 3))
    assert told.value.ids == ("0", "1", "2")
    assert [image.id for image in producer.uncertain] == ["0", "1", "2"]
    assert client.xlen(f"mhpc:{{{line}}}:images") == 1
    producer.send(images(3, 1))  # the next one goes
    assert producer.uncertain == []


def test_a_server_that_stays_away_ends_the_tries_with_the_ids(
    camera: redis.Redis, proxy: Proxy, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(flow, "HELD_SECONDS", 0.0)  # told at the first of the tries, of which two are certain
    producer = Producer(camera, line, retry=Retry(WINDOW, seconds=2), held=heard.append)
    producer.send(images(0, 1))
    proxy.drop_reply(b"XADD", times=99)
    with pytest.raises(FateUnknownError) as told:
        producer.send(images(1, 2))
    assert told.value.ids == ("1", "2")
    assert proxy.dropped > 1
    assert heard == [f"Redis is not reached; what is for line {line} waits"]
    proxy.cut()
    with pytest.raises(RedisUnreachableError, match="between two entries") as before:
        producer.send(images(3, 1))
    assert not isinstance(before.value, FateUnknownError)


def test_who_is_stopped_while_a_fate_is_unknown_is_told_so(camera: redis.Redis, proxy: Proxy, line: str) -> None:
    stop = threading.Event()
    producer = Producer(camera, line, retry=Retry(WINDOW))
    producer.send(images(0, 1))
    proxy.drop_reply(b"XADD", times=99)
    set_once(stop, lambda: proxy.dropped)
    with pytest.raises(FateUnknownError):
        producer.send(images(1, 1), stop)


@pytest.mark.parametrize("unique_ids", [0, WINDOW - 1])
def test_a_window_that_the_line_does_not_have_is_refused(
    run: Run, settings: Callable[..., Settings], client: redis.Redis, line: str, unique_ids: int
) -> None:
    run(settings(line, streams={"unique_ids": unique_ids}))
    eventually(lambda: client.hget(f"mhpc:{{{line}}}:state", "unique_ids"))
    with pytest.raises(ConfigurationError, match=f"is kept with streams.unique_ids = {unique_ids}: raise it there"):
        Producer(client, line, retry=Retry(WINDOW)).send(images(0, 1))
    assert client.xlen(f"mhpc:{{{line}}}:images") == 0


def test_what_the_window_would_drop_of_one_entry_is_refused(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line, retry=Retry(2))
    with pytest.raises(ConfigurationError, match="id '0' stands twice in one entry"):
        producer.send([*images(0, 1), *images(0, 1)])
    with pytest.raises(ConfigurationError, match="3 images in an entry, more than the window of 2"):
        producer.send(images(0, 3))
    with pytest.raises(ConfigurationError, match="nothing may be sent twice: leave retry out"):
        Producer(client, line, retry=Retry(0))


def test_a_redis_that_is_full_does_not_prolong_the_tries_after_a_lost_reply(
    private_redis: PrivateRedis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "LONGEST_PAUSE", 0.1)
    proxy, stop = Proxy(private_redis.port), threading.Event()
    redis.Redis(port=private_redis.port).config_set("maxmemory", 1)
    proxy.drop_reply(b"XADD")
    producer = Producer(connect(proxy.url), line, max_ahead=None, retry=Retry(WINDOW, seconds=0.5))
    giving_up = threading.Timer(DEADLINE_SECONDS, stop.set)
    giving_up.start()
    try:
        with pytest.raises(FateUnknownError):
            producer.send(images(0, 1), stop)
        assert not stop.is_set()
    finally:
        giving_up.cancel()
        proxy.close()


def test_a_redis_that_is_full_holds_the_producer_up_and_takes_the_entry_once(
    private_redis: PrivateRedis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "HELD_SECONDS", 0.0)
    monkeypatch.setattr(flow, "LONGEST_PAUSE", 0.05)
    client, heard, stop = connect(private_redis.url), list[str](), threading.Event()
    producer = Producer(client, line, max_ahead=None, held=heard.append)
    client.config_set("maxmemory", 1)
    sending = threading.Thread(target=producer.send, args=(images(0, 1),))
    sending.start()
    eventually(lambda: heard)
    assert heard[0].startswith(f"Redis is full, and takes nothing for line {line} (")
    threading.Timer(0.2, stop.set).start()
    assert Producer(client, line, max_ahead=None).send(images(1, 1), stop) is None
    client.config_set("maxmemory", 0)
    sending.join(30)
    assert client.xlen(f"mhpc:{{{line}}}:images") == 1
