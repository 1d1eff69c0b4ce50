"""Images that are added one by one become entries: by count, by bytes, by time."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import msgpack
import pytest
import redis

from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import encoded, eventually, picture
from tests.worker.streams.acting import deliver
from worker.errors import ConfigurationError, FateUnknownError, RejectedError, WorkerError
from worker.message import Image, decode_batch, encode_batch
from worker.producer import Producer, connect
from worker.settings import LimitSettings
from worker.streams.line_streams import ANSWERING, LineStreams

DATA = encoded(picture())
SMALL: dict[str, Any] = {"batch": 1, "batch_bytes": 9}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = connect(redis_url)
    yield client
    client.close()


def image(number: int, data: bytes = DATA) -> Image:
    return Image(str(number), "png", data)


def sent(client: redis.Redis, line: str) -> list[str]:
    """Each entry's ids, joined."""
    entries = cast(list[tuple[bytes, dict[bytes, bytes]]], client.xrange(f"mhpc:{{{line}}}:images"))
    return ["".join(item["id"] for item in msgpack.unpackb(fields[b"batch"])["images"]) for _, fields in entries]


def ids(images: list[Image]) -> str:
    return "".join(image.id for image in images)


def test_entries_are_filled_by_count_and_the_end_of_the_block_sends_the_rest(client: redis.Redis, line: str) -> None:
    heard: list[tuple[str, str]] = []
    with Producer(client, line, batch=3, sent=lambda entry, images: heard.append((entry, ids(images)))) as producer:
        for number in range(7):
            producer.add(image(number))
        assert (sent(client, line), ids(producer.unsent)) == (["012", "345"], "6")
    assert sent(client, line) == ["012", "345", "6"]
    assert [text for _, text in heard] == ["012", "345", "6"]
    assert len({entry for entry, _ in heard}) == 3


def test_entries_are_filled_by_bytes_and_a_large_picture_goes_alone(client: redis.Redis, line: str) -> None:
    with Producer(client, line, batch=8, batch_bytes=100) as producer:
        for number, size in enumerate((60, 40, 1, 300, 50)):
            producer.add(image(number, bytes(size)))
    assert sent(client, line) == ["01", "2", "3", "4"]


def test_flush_sends_what_is_there_and_of_nothing_makes_no_entry(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line)
    producer.flush()
    assert sent(client, line) == []
    producer.add(image(0))
    producer.flush()
    producer.flush()
    assert sent(client, line) == ["0"]


def test_an_image_waits_for_others_no_longer_than_it_may_linger(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line, batch=3, linger=0.05)
    producer.add(image(0))
    eventually(lambda: sent(client, line) == ["0"])
    for number in (1, 2, 3, 4):  # an entry that is filled, and one that is not
        producer.add(image(number))
    eventually(lambda: "".join(sent(client, line)) == "01234")


def test_what_goes_wrong_while_an_image_lingers_is_raised_by_the_next_call_and_the_image_is_kept(
    client: redis.Redis, line: str
) -> None:
    client.set(f"mhpc:{{{line}}}:images", "not a stream")
    producer = Producer(client, line, max_ahead=None, linger=0.01)
    producer.add(image(0))
    eventually(lambda: producer._failure)
    with pytest.raises(WorkerError, match="WRONGTYPE"):
        producer.add(image(1))
    assert ids(producer.unsent) == "0"
    client.delete(f"mhpc:{{{line}}}:images")
    producer.add(image(1))
    producer.close()
    assert sent(client, line) == ["0", "1"]


def test_what_redis_refuses_stays_and_does_not_pile_up(client: redis.Redis, line: str) -> None:
    client.set(f"mhpc:{{{line}}}:images", "not a stream")
    producer = Producer(client, line, max_ahead=None, batch=2)
    producer.add(image(0))
    for _ in range(5):
        with pytest.raises(WorkerError, match="WRONGTYPE"):
            producer.add(image(1))
    assert ids(producer.unsent) == "01"  # the first error came with its entry full, the others before the image
    client.delete(f"mhpc:{{{line}}}:images")
    producer.flush()
    assert sent(client, line) == ["01"]


def test_an_entry_whose_fate_is_unknown_is_left_out(redis_url: str, line: str, client: redis.Redis) -> None:
    proxy = Proxy(client.connection_pool.connection_kwargs["port"])
    try:
        producer = Producer(connect(proxy.url), line, batch=2)
        producer.add(image(0))
        proxy.drop_reply(b"XADD")
        with pytest.raises(FateUnknownError):
            producer.add(image(1))
        assert (ids(producer.uncertain), producer.unsent) == ("01", [])
        producer.add(image(2))
        producer.close()
    finally:
        proxy.close()
    assert sent(client, line) == ["01", "2"]


def test_a_block_that_ends_by_an_exception_sends_nothing_more(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line, linger=30)

    def camera() -> None:
        with producer:
            producer.add(image(0))
            raise KeyError

    with pytest.raises(KeyError):
        camera()
    assert ids(producer.unsent) == "0"
    assert sent(client, line) == []


def test_stop_ends_the_waiting_and_keeps_the_image(client: redis.Redis, line: str) -> None:
    stop = threading.Event()
    producer = Producer(client, line, batch=1, max_ahead=1)
    producer.add(image(0))
    threading.Timer(0.1, stop.set).start()
    producer.add(image(1), stop)
    assert (sent(client, line), ids(producer.unsent)) == (["0"], "1")


@pytest.mark.parametrize("ends", ["add", "flush", "send"])
def test_stop_ends_the_waiting_for_the_thread_that_sends_what_lingered_too(
    client: redis.Redis, line: str, ends: str
) -> None:
    stop = threading.Event()
    producer = Producer(client, line, batch=9, linger=0.05, max_ahead=1)
    producer.send([image(0)])
    producer.add(image(1))
    eventually(lambda: producer._collector.full)  # it waits for room now
    threading.Timer(0.1, stop.set).start()
    call = {"add": lambda: producer.add(image(2), stop), "flush": lambda: producer.flush(stop)}
    call.get(ends, lambda: producer.send([image(2)], stop))()
    assert sent(client, line) == ["0"]
    assert ids(producer.unsent) == ("12" if ends == "add" else "1")


def is_held(producer: Producer) -> bool:
    if producer._lock.acquire(blocking=False):
        producer._lock.release()
        return False
    return True


def test_who_stops_leaves_what_lingers_for_others_to_be_sent(client: redis.Redis, line: str) -> None:
    stop = threading.Event()
    producer = Producer(client, line, batch=9, linger=0.05, max_ahead=1)
    producer.send([image(0)])
    other = threading.Thread(target=producer.send, args=([image(1)],))  # it waits for room, and holds the rest up
    other.start()
    eventually(lambda: is_held(producer))
    adds = threading.Thread(target=producer.add, args=(image(2),))
    adds.start()
    stop.set()
    stopped = threading.Thread(target=producer.flush, args=(stop,))
    stopped.start()
    streams = LineStreams(client, line)
    streams.ensure_groups()
    while len(sent(client, line)) < 3:
        for entry in deliver(streams):
            client.xack(streams.images, ANSWERING, entry)
        time.sleep(0.02)
    for thread in (other, adds, stopped):
        thread.join()
    assert (sorted("".join(sent(client, line))), producer.unsent) == (["0", "1", "2"], [])


def test_threads_share_a_producer_and_nothing_is_lost(client: redis.Redis, line: str) -> None:
    numbers = {first: range(first, first + 25) for first in (100, 200, 300, 400)}

    def camera(first: int) -> None:
        for number in numbers[first]:
            producer.add(image(number))

    with Producer(client, line, batch=4, max_ahead=None, linger=0.001) as producer:
        threads = [threading.Thread(target=camera, args=[first]) for first in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = "".join(sent(client, line))
    expected = [str(number) for range_ in numbers.values() for number in range_]
    assert sorted(names[i : i + 3] for i in range(0, 300, 3)) == expected


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"id": "x" * 513}, "wrong_shape", "`id` has 513 characters, at most 512"),
        ({"id": 7}, "wrong_shape", "`id` is of type int"),
        ({"format": "bmp"}, "wrong_shape", "`format` is 'bmp', expected one of jpeg, png, raw"),
        ({"data": "text"}, "wrong_shape", "`data` is of type str, expected bytes"),
        ({"data": bytearray(b"x")}, "wrong_shape", "`data` is of type bytearray, expected bytes"),
        ({"ts": float("nan")}, "wrong_shape", "`ts` is nan"),
        ({"meta": {"a": object()}}, "wrong_shape", "image '1': can not serialize 'object'"),
        ({"meta": {1: "a"}}, "wrong_shape", "`meta` holds more than plain values by string keys"),
        ({"meta": {"a": {"b": 1 << 70}}}, "wrong_shape", ""),
        ({"meta": {"a": "x" * 20_000}}, "too_large", "more than 16384 bytes"),
        ({"format": "raw"}, "wrong_shape", "`shape` is None"),
        ({"format": "raw", "shape": (2, 2, 4), "data": bytes(16)}, "wrong_shape", "c 1 or 3"),
        ({"format": "raw", "shape": (2, 2, 3), "data": bytes(11)}, "wrong_shape", "needs 12 bytes, 11 came"),
        ({"data": bytes(64 * 1024 * 1024 + 1)}, "too_large", "at most 67108864"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_a_worker_would_refuse_is_refused_at_once_and_harms_no_neighbour(
    client: redis.Redis, line: str, changes: dict[str, Any], reason: str, text: str
) -> None:
    producer, bad = Producer(client, line), replace(image(1), **changes)
    producer.add(image(0))
    calls: list[Callable[[], Any]] = [lambda: producer.add(bad), lambda: producer.send([image(0), bad])]
    for call in calls:
        with pytest.raises(RejectedError) as told:
            call()
        assert told.value.reason == reason
        assert text in str(told.value)
    producer.close()
    assert sent(client, line) == ["0"]


@pytest.mark.parametrize(
    "options", [{"batch": 0}, {"batch": 257}, {"batch_bytes": 0}, {"linger": -1}, {"max_ahead": 0}]
)
def test_options_that_mean_nothing_are_refused(client: redis.Redis, line: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=str(next(iter(options.values())))):
        Producer(client, line, **options)


def test_an_entry_of_too_many_or_too_much_is_refused(client: redis.Redis, line: str) -> None:
    producer = Producer(
        client, line, limits=LimitSettings(images_per_entry=2, entry_bytes=1000), batch=1, batch_bytes=9
    )
    with pytest.raises(RejectedError, match="3 images in one entry, at most 2"):
        producer.send([image(number, b"x") for number in range(3)])
    pair = [image(number, bytes(600)) for number in range(2)]
    with pytest.raises(RejectedError, match=f"entry of {len(encode_batch(pair))} bytes, at most 1000"):
        producer.send(pair)


@pytest.mark.parametrize("size", [200, 70_000])
def test_an_entry_is_measured_as_the_worker_measures_it(client: redis.Redis, line: str, size: int) -> None:
    pair = [image(number, bytes(size)) for number in range(2)]
    packed = len(encode_batch(pair))
    Producer(client, line, limits=LimitSettings(entry_bytes=packed), batch_bytes=9).send(pair)
    with pytest.raises(RejectedError, match=f"entry of {packed} bytes"):
        Producer(client, line, limits=LimitSettings(entry_bytes=packed - 1), batch_bytes=9).send(pair)


def test_what_goes_along_with_pictures_fills_an_entry_too(client: redis.Redis, line: str) -> None:
    full = [replace(image(number), meta={"x": [7] * 9000}) for number in range(100)]  # of 900,000 values
    with pytest.raises(RejectedError, match="more than 500000 values"):
        Producer(client, line).send(full)
    with Producer(client, line, batch=256) as producer:
        for each in full:
            producer.add(each)
    entries: Any = client.xrange(f"mhpc:{{{line}}}:images")
    assert [len(decode_batch(fields[b"batch"], LimitSettings())) for _, fields in entries] == [55, 45]


def test_an_empty_entry_is_refused(client: redis.Redis, line: str) -> None:
    with pytest.raises(ConfigurationError, match="an entry of no images"):
        Producer(client, line).send([])
