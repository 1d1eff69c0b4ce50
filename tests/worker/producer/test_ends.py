"""Nothing goes twice: not where who is told of an entry raises, nor where the end of a producer fails."""

import asyncio
from typing import Any

import pytest
import redis

from tests.worker.helpers import eventually
from tests.worker.producer.test_asynchronous import ids, image, producing, run_async, sent, until
from worker.errors import WorkerError
from worker.producer import Producer


def fails(*_: object) -> None:
    raise KeyError("sent")


def test_who_is_told_of_an_entry_and_raises_does_not_have_it_sent_again(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line, batch=1, sent=fails)
    for number in (0, 1):
        with pytest.raises(KeyError):
            producer.add(image(number))
        assert (producer.unsent, producer.uncertain) == ([], [])
    producer.close()
    assert sent(client, line) == ["0", "1"]


def test_who_is_told_of_an_entry_that_lingered_and_raises_is_heard_by_the_next_call(
    client: redis.Redis, line: str
) -> None:
    producer = Producer(client, line, linger=0.01, sent=fails)
    producer.add(image(0))
    eventually(lambda: producer._failure)
    with pytest.raises(KeyError):
        producer.close()
    producer.close()
    assert sent(client, line) == ["0"]


def test_in_an_event_loop_too_who_is_told_of_an_entry_and_raises_does_not_have_it_sent_again(
    redis_url: str, client: redis.Redis, line: str
) -> None:
    async def work() -> None:
        async with producing(redis_url, line, batch=2, linger=0.01, sent=fails) as producer:
            await producer.add(image(0))
            await until(lambda: producer._failure)  # it lingered
            with pytest.raises(KeyError):
                await producer.add(image(1))
            producer._collector.linger = 30
            await producer.add(image(1))
            with pytest.raises(KeyError):
                await producer.add(image(2))
            assert (producer.unsent, producer.uncertain) == ([], [])

    run_async(work())
    assert sent(client, line) == ["0", "12"]


LINGER = 0.2


def test_what_an_end_that_failed_leaves_is_not_sent_later(client: redis.Redis, line: str) -> None:
    client.set(f"mhpc:{{{line}}}:images", "not a stream")
    producer = Producer(client, line, max_ahead=None, linger=LINGER)
    producer.add(image(0))
    timer = producer._timer
    with pytest.raises(WorkerError, match="WRONGTYPE"):
        producer.close()
    assert ids(producer.unsent) == "0"
    client.delete(f"mhpc:{{{line}}}:images")
    assert timer is not None
    timer.join(10)
    assert sent(client, line) == []
    producer.add(image(1))  # who goes on with it sends that, too, and what comes lingers as before
    eventually(lambda: sent(client, line) == ["0", "1"])


def test_in_an_event_loop_too_what_an_end_that_failed_leaves_is_not_sent_later(
    redis_url: str, client: redis.Redis, line: str
) -> None:
    client.set(f"mhpc:{{{line}}}:images", "not a stream")

    async def work() -> None:
        async with producing(redis_url, line, max_ahead=None, linger=LINGER) as producer:
            await producer.add(image(0))
            with pytest.raises(WorkerError, match="WRONGTYPE"):
                await producer.aclose()
            client.delete(f"mhpc:{{{line}}}:images")
            await asyncio.sleep(2 * LINGER)
            assert (ids(producer.unsent), sent(client, line)) == ("0", [])
            await producer.add(image(1))
            await until(lambda: sent(client, line) == ["0", "1"])

    run_async(work())


def test_an_image_of_a_block_that_failed_lingers_again_in_the_next_one(client: redis.Redis, line: str) -> None:
    producer = Producer(client, line, linger=60)  # longer than anything stands still before the block fails
    timers = list[Any]()

    def camera() -> None:
        with producer:
            producer.add(image(0))
            timers.append(producer._timer)
            raise KeyError

    with pytest.raises(KeyError):
        camera()
    timers[0].join(10)
    assert not timers[0].is_alive()  # nor will it send anything
    assert sent(client, line) == []
    producer._collector.linger = LINGER
    with producer:
        producer.add(image(1))
        eventually(lambda: sent(client, line) == ["01"])
