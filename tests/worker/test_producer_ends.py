"""Nothing goes twice: not where who is told of an entry raises, nor where the end of a producer fails."""

import pytest
import redis

from tests.worker.helpers import eventually
from tests.worker.test_producer_async import image, producing, run_async, sent, until
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
