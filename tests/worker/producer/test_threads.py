"""Who shares a producer with one that waits for room can be stopped, and sees how far the line is."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.worker.helpers import DEADLINE_SECONDS, eventually
from tests.worker.producer.test_asynchronous import ids, image, producing, run_async, sent, until
from tests.worker.streams.acting import deliver
from worker.producer import Producer
from worker.streams.line_streams import ANSWERING, LineStreams


@pytest.fixture
def crowded(client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Producer]:
    """A producer with which another thread waits for room, with image 1."""
    monkeypatch.setattr("worker.producer.flow.HELD_SECONDS", 0.0)
    heard, stop = list[str](), threading.Event()
    producer = Producer(client, line, batch=2, max_ahead=1, held=heard.append)
    producer.send([image(0)])
    other = threading.Thread(target=producer.send, args=([image(1)], stop))
    other.start()
    eventually(lambda: heard)
    yield producer
    stop.set()
    other.join()


def aside(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """In a thread that no test has to wait for: what the call gave is in the list."""
    gave: list[Any] = []
    thread = threading.Thread(target=lambda: gave.append(call()), daemon=True)
    thread.start()
    return thread, gave


CALLS: dict[str, tuple[Callable[[Producer, threading.Event], Any], str]] = {
    "add": (lambda producer, stop: producer.add(image(2), stop), "2"),
    "flush": (lambda producer, stop: producer.flush(stop), ""),
    "send": (lambda producer, stop: producer.send([image(2)], stop), ""),
}


@pytest.mark.parametrize("name", CALLS)
def test_stop_ends_the_waiting_for_a_thread_that_waits_for_room_and_not_that_thread(
    crowded: Producer, client: redis.Redis, line: str, name: str
) -> None:
    (call, kept), stop = CALLS[name], threading.Event()
    thread, gave = aside(lambda: call(crowded, stop))
    thread.join(0.2)
    assert thread.is_alive()  # for as long as it is not stopped
    stop.set()
    thread.join(DEADLINE_SECONDS)
    assert gave == [None]
    assert (ids(crowded.unsent), sent(client, line)) == (kept, ["0"])
    streams = LineStreams(client, line)
    streams.ensure_groups()
    for entry in deliver(streams):
        client.xack(streams.images, ANSWERING, entry)
    eventually(lambda: sent(client, line) == ["0", "1"])


def test_an_image_that_was_taken_as_its_thread_was_stopped_goes_with_the_next_ones(
    client: redis.Redis, line: str
) -> None:
    stop, go, waited = threading.Event(), threading.Event(), list[bool]()

    def waits(*_: object) -> None:
        waited.append(go.wait(DEADLINE_SECONDS))

    producer = Producer(client, line, batch=2, sent=waits)
    other = threading.Thread(target=producer.send, args=([image(0)],))
    other.start()
    eventually(lambda: sent(client, line))
    stop.set()
    for number in (1, 2, 3):
        producer.add(image(number), stop)
    assert ids(producer.unsent) == "123"
    go.set()
    other.join()
    assert waited == [True]  # nobody waited for it
    producer.add(image(4))
    assert (sent(client, line), producer.unsent) == (["0", "12", "34"], [])


def test_how_far_the_line_is_can_be_seen_while_a_thread_waits_for_room(crowded: Producer) -> None:
    _, gave = aside(crowded.ahead)
    eventually(lambda: gave == [1])


def test_in_an_event_loop_too_how_far_the_line_is_can_be_seen_while_a_task_waits_for_room(
    redis_url: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.producer.flow.HELD_SECONDS", 0.0)
    heard: list[str] = []

    async def work() -> None:
        async with producing(redis_url, line, max_ahead=1, held=heard.append) as producer:
            await producer.send([image(0)])
            waiting = asyncio.create_task(producer.send([image(1)]))
            await until(lambda: heard)
            assert await asyncio.wait_for(producer.ahead(), DEADLINE_SECONDS) == 1
            waiting.cancel()
            await asyncio.wait([waiting])

    run_async(work())


def test_threads_that_look_how_far_the_line_is_drop_no_entry_that_is_unread(client: redis.Redis, line: str) -> None:
    producer, streams, stop = (
        Producer(client, line, batch=1, max_ahead=None),
        LineStreams(client, line),
        threading.Event(),
    )
    streams.ensure_groups()

    def look() -> None:
        while not stop.is_set():
            producer.ahead()

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    for number in range(100):
        producer.add(image(number))
        if number < 50:
            deliver(streams)
    stop.set()
    for looker in lookers:
        looker.join()
    producer.ahead()  # now all that was read is dropped, however often the others came to look
    assert len(producer._flow._unread) == 50
