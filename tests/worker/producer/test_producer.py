import dataclasses
import io
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import msgpack
import pytest
import redis
from PIL import Image as Pillow

from tests.worker.producer.test_retry import set_once
from worker.errors import ConfigurationError, RedisUnreachableError, RejectedError, WorkerError
from worker.message import Image, Rejected, decode_batch, decode_pixels
from worker.producer import Producer, batches, connect, flow, produce
from worker.settings import LimitSettings


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = connect(redis_url)
    yield client
    client.close()


@pytest.fixture
def line() -> str:
    return f"p-{uuid.uuid4().hex[:12]}"


def key(line: str) -> str:
    return f"mhpc:{{{line}}}:images"


def encoded(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Pillow.new(mode, size).save(buffer, form)
    return buffer.getvalue()


def images(count: int, start: int = 0) -> list[Image]:
    return [Image(str(i), "png", encoded()) for i in range(start, start + count)]


def entries(client: redis.Redis, line: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast(list[tuple[bytes, dict[bytes, bytes]]], client.xrange(key(line)))


def sent_ids(client: redis.Redis, line: str) -> list[list[str]]:
    return [
        [image["id"] for image in msgpack.unpackb(fields[b"batch"])["images"]] for _, fields in entries(client, line)
    ]


def answer(client: redis.Redis, line: str, count: int) -> None:
    """Read and acknowledge `count` entries as the worker's answering group does."""
    client.xreadgroup("mhpc", "c", {key(line): ">"}, count=count)
    pending = client.xpending_range(key(line), "mhpc", "-", "+", count)
    client.xack(key(line), "mhpc", *[entry["message_id"] for entry in pending])


def settle(read: Callable[[], Any], expected: int) -> None:
    """Wait until the value is reached, then make sure that it stays."""
    deadline = time.monotonic() + 10
    while read() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)
    assert read() == expected


def test_images_arrive_in_order_in_batches_that_the_worker_decodes(client: redis.Redis, line: str) -> None:
    heard: list[str] = []
    count = produce(Producer(client, line), images(7), batch=3, sent=lambda entry, group: heard.append(entry))
    assert count == 7
    assert sent_ids(client, line) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    added = entries(client, line)
    assert heard == [entry.decode() for entry, _ in added]
    limits = LimitSettings()
    for image in decode_batch(added[0][1][b"batch"], limits):
        assert not isinstance(image, Rejected)
        assert decode_pixels(image, limits).shape == (6, 8, 3)


def test_with_no_worker_sending_stops_at_max_ahead_and_goes_on_as_entries_are_answered(
    client: redis.Redis, line: str
) -> None:
    stop = threading.Event()
    camera = threading.Thread(
        target=produce, args=(Producer(client, line, max_ahead=4), images(20)), kwargs={"batch": 2, "stop": stop}
    )
    camera.start()
    try:
        settle(lambda: client.xlen(key(line)), 4)
        client.xgroup_create(key(line), "mhpc", "0")
        answer(client, line, 3)
        settle(lambda: client.xlen(key(line)), 7)
        answer(client, line, 4)
        settle(lambda: client.xlen(key(line)), 10)  # all
        camera.join(5)
        assert not camera.is_alive()
    finally:
        stop.set()
        camera.join(5)


def test_entries_that_are_read_but_not_answered_count_as_ahead(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line)
    produce(producer, images(5), batch=1)
    assert producer.ahead() == 5
    client.xgroup_create(key(line), "mhpc", "0")
    client.xreadgroup("mhpc", "c", {key(line): ">"}, count=3)
    assert producer.ahead() == 5
    answer(client, line, 1)
    assert producer.ahead() == 4


def test_without_max_ahead_it_remembers_so_many_entries_and_no_more(
    client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "COUNTED", 3)
    producer = Producer(client, line, max_ahead=None)
    produce(producer, images(5), batch=1)
    assert producer.ahead() == 3
    assert client.xlen(key(line)) == 5


def test_a_wiped_stream_does_not_hold_the_camera_up_for_ever(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line, max_ahead=2)
    produce(producer, images(2), batch=1)
    client.delete(key(line))
    assert producer.send(images(1)) is not None


def test_a_stopped_camera_adds_nothing_more(client: redis.Redis, line: str) -> None:
    stop = threading.Event()
    stop.set()
    assert produce(Producer(client, line, rate=0.01), images(3), stop=stop) == 0
    assert client.exists(key(line)) == 0


def test_the_rate_holds_over_many_images(client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    stop = threading.Event()

    def wait(seconds: float | None = None) -> bool:
        clock[0] += seconds or 0.0
        return False

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stop, "wait", wait)
    produce(Producer(client, line, rate=20.0), images(40), batch=4, stop=stop)
    assert clock[0] == pytest.approx(36 / 20)  # the first batch goes at once


def test_who_waits_long_is_told_once_each_time(client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "HELD_SECONDS", 0.1)
    heard: list[str] = []
    stop = threading.Event()

    def held(text: str) -> None:
        heard.append(text)
        threading.Timer(0.3, stop.set).start()

    producer = Producer(client, line, max_ahead=1, held=held)
    produce(producer, images(1))
    assert producer.send(images(1), stop) is None
    assert heard == [f"1 entries of line {line} wait for an answer; does its worker run?"]


def test_by_default_the_log_is_told(
    client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flow, "HELD_SECONDS", 0.05)
    stop = threading.Event()
    producer = Producer(client, line, max_ahead=1)
    producer.send(images(1))
    set_once(stop, lambda: caplog.records)
    assert producer.send(images(1), stop) is None
    assert [(record.name, record.levelname) for record in caplog.records] == [("worker.producer", "WARNING")]


def test_a_lost_reply_is_not_repeated(client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry arrives, its reply does not: the producer ends and says which images it was sending."""
    read = redis.Connection.read_response

    def lose_reply(self: redis.Connection, *args: object, **kwargs: object) -> object:
        reply = read(self, *args, **kwargs)
        if isinstance(reply, bytes) and b"-" in reply:  # XADD's: an entry id
            raise redis.ConnectionError("reply lost")
        return reply

    producer = Producer(client, line)
    with monkeypatch.context() as patch:
        patch.setattr(redis.Connection, "read_response", lose_reply)
        with pytest.raises(RedisUnreachableError, match="while 0 to 2 went out: reply lost; nobody knows"):
            produce(producer, images(3))
    assert sent_ids(client, line) == [["0", "1", "2"]]


def test_no_redis_is_one_clear_error_with_exit_code_3() -> None:
    with pytest.raises(RedisUnreachableError, match=r"is not reached: .*start it, or set redis.url") as caught:
        connect("redis://127.0.0.1:1/0")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("url", ["http://:hunter2@127.0.0.1:6379", "me:hunter2@127.0.0.1:6379"])
def test_what_is_no_address_of_a_redis_is_one_clear_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"127.0.0.1:6379: .*, must start with redis://, ") as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)


def test_what_redis_refuses_is_told(client: redis.Redis, line: str) -> None:
    client.set(key(line), "not a stream")
    with pytest.raises(WorkerError, match="WRONGTYPE"):
        produce(Producer(client, line), images(1))


@pytest.mark.parametrize("name", ["", "Press", "-a", "a}b", "a" * 64])
def test_a_bad_line_name_is_refused(client: redis.Redis, name: str) -> None:
    with pytest.raises(ConfigurationError, match="line name"):
        Producer(client, name)


def test_a_negative_rate_is_refused(client: redis.Redis, line: str) -> None:
    with pytest.raises(ConfigurationError, match="rate -1"):
        Producer(client, line, rate=-1)


@pytest.mark.parametrize("odd", [{"id": "\udcff"}, {"meta": {"at": datetime.now(UTC)}}])
def test_what_no_worker_would_take_is_refused_of_an_iterable_too(
    client: redis.Redis, line: str, odd: dict[str, Any]
) -> None:
    with pytest.raises(RejectedError):
        produce(Producer(client, line), [dataclasses.replace(Image("a", "png", encoded("PNG")), **odd)])


def test_a_batch_is_bounded_in_bytes_too() -> None:
    sizes = [60, 40, 1, 300, 50]
    split = batches((Image(str(i), "png", bytes(size)) for i, size in enumerate(sizes)), 8, 100)
    assert [[len(image.data) for image in batch] for batch in split] == [[60, 40], [1], [300], [50]]


def test_the_producer_imports_no_torch() -> None:
    code = "import sys, worker.producer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
