"""What `unsent` and `uncertain` say is so, wherever a call is left: nothing is lost by it, and nothing sent twice."""

import _thread
import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import DEADLINE_SECONDS, eventually
from tests.worker.producer.test_asynchronous import ids, image, producing, run_async, sent, until
from worker import producer as package
from worker.errors import ConfigurationError, FateUnknownError
from worker.producer import Producer, Retry, connect, flow

PACKAGE = str(Path(package.__file__).parent)


@pytest.fixture
def full_redis(private_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    """One that has no room; a producer that it holds up says so at once."""
    monkeypatch.setattr(flow, "HELD_SECONDS", 0.0)
    client = redis.Redis(port=private_redis.port, protocol=2)
    client.config_set("maxmemory", 1)
    return client


def fails(*_: object) -> None:
    raise KeyError


def interrupts(_: str) -> None:
    _thread.interrupt_main()


# -- a Redis that is full says that it added nothing -------------------------------------------------------------------


def test_a_task_that_is_cancelled_while_redis_is_full_keeps_its_image(
    private_redis: PrivateRedis, full_redis: redis.Redis, line: str
) -> None:
    heard: list[str] = []

    async def work() -> None:
        async with producing(private_redis.url, line, batch=1, max_ahead=None, held=heard.append) as producer:
            adding = asyncio.create_task(producer.add(image(0)))
            await until(lambda: heard)
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            assert (ids(producer.unsent), producer.uncertain) == ("0", [])
            full_redis.config_set("maxmemory", 0)

    run_async(work())
    assert sent(full_redis, line) == ["0"]


@pytest.mark.parametrize(("held", "error"), [(interrupts, KeyboardInterrupt), (fails, KeyError)])
def test_who_is_interrupted_while_redis_is_full_keeps_the_image(
    private_redis: PrivateRedis,
    full_redis: redis.Redis,
    line: str,
    held: Callable[[str], None],
    error: type[BaseException],
) -> None:
    producer = Producer(connect(private_redis.url), line, batch=1, max_ahead=None, held=held)
    with pytest.raises(error):
        producer.add(image(0))
    assert (ids(producer.unsent), producer.uncertain) == ("0", [])
    full_redis.config_set("maxmemory", 0)
    producer.close()
    assert sent(full_redis, line) == ["0"]


def test_a_task_is_cancelled_wherever_it_is(redis_url: str, client: redis.Redis, line: str) -> None:
    """wait_for of Python 3.11, within redis-py's sending, swallows one that comes as it ends."""

    async def work() -> None:
        async with producing(redis_url, line, max_ahead=1) as producer:
            await producer.send([image(0)])
            for turns in range(30):
                sending = asyncio.create_task(producer.send([image(1)]))  # it waits for room
                for _ in range(turns):
                    await asyncio.sleep(0)
                sending.cancel()
                await asyncio.wait([sending], timeout=DEADLINE_SECONDS)
                assert sending.cancelled(), turns
            assert (producer.unsent, producer.uncertain) == ([], [])

    run_async(work())
    assert sent(client, line) == ["0"]


# -- what is on its way is not unsent ----------------------------------------------------------------------------------


def test_an_entry_that_is_on_its_way_is_uncertain_and_not_unsent(proxy: Proxy, client: redis.Redis, line: str) -> None:
    producer = Producer(connect(f"{proxy.url}?socket_timeout=60"), line, batch=1, max_ahead=None)
    proxy.hold(b"XADD")
    adding = threading.Thread(target=producer.add, args=(image(0),))
    adding.start()
    eventually(lambda: proxy.holds)
    assert (producer.unsent, ids(producer.uncertain)) == ([], "0")
    proxy.mend()
    adding.join()
    assert (producer.unsent, producer.uncertain, sent(client, line)) == ([], [], ["0"])


def test_in_an_event_loop_too_an_entry_that_is_on_its_way_is_uncertain_and_not_unsent(
    proxy: Proxy, client: redis.Redis, line: str
) -> None:
    async def work() -> None:
        async with producing(f"{proxy.url}?socket_timeout=60", line, batch=1, max_ahead=None) as producer:
            proxy.hold(b"XADD")
            adding = asyncio.create_task(producer.add(image(0)))
            await until(lambda: proxy.holds)
            assert (producer.unsent, ids(producer.uncertain)) == ([], "0")
            proxy.mend()
            await adding
            assert (producer.unsent, producer.uncertain) == ([], [])

    run_async(work())
    assert sent(client, line) == ["0"]


@pytest.mark.parametrize("command", [b"XLEN", b"XADD"])
def test_what_lingered_and_is_being_sent_as_a_block_fails_is_not_sent_behind_its_back(
    proxy: Proxy, client: redis.Redis, line: str, command: bytes
) -> None:
    producer = Producer(connect(f"{proxy.url}?socket_timeout=60"), line, linger=0.01)
    proxy.hold(command)
    timers: list[Any] = []

    def camera() -> None:
        with producer:
            producer.add(image(0))
            timers.append(producer._timer)
            eventually(lambda: proxy.holds)
            threading.Timer(0.2, proxy.mend).start()
            raise KeyError

    with pytest.raises(KeyError):
        camera()
    kept = ids(producer.unsent)
    timers[0].join()
    assert kept + "".join(sent(client, line)) == "0"


# -- what can never go holds nothing up --------------------------------------------------------------------------------


def test_an_id_that_waits_already_is_refused_at_once_and_what_waits_goes_with_what_comes(
    client: redis.Redis, line: str
) -> None:
    with Producer(client, line, batch=3, retry=Retry(64)) as producer:
        for number in (0, 1):
            producer.add(image(number))
            with pytest.raises(ConfigurationError, match="'0' stands twice in one entry"):
                producer.add(image(0))
        producer.add(image(2))
        producer.add(image(0))  # in another entry the worker drops it as a repeat
    with Producer(client, line) as producer:  # which nobody asks it for
        producer.add(image(7))
        producer.add(image(7))
    assert sent(client, line) == ["012", "0", "77"]


def test_in_an_event_loop_too_an_id_that_waits_already_is_refused_at_once(
    redis_url: str, client: redis.Redis, line: str
) -> None:
    async def work() -> None:
        async with producing(redis_url, line, batch=2, retry=Retry(64)) as producer:
            await producer.add(image(0))
            with pytest.raises(ConfigurationError, match="'0' stands twice in one entry"):
                await producer.add(image(0))
            await producer.add(image(1))

    run_async(work())
    assert sent(client, line) == ["01"]


# -- an interrupt comes anywhere ---------------------------------------------------------------------------------------


class Interrupt(KeyboardInterrupt):
    pass


def interrupted(call: Callable[[], object], at: int) -> bool:
    """Call it with an interrupt at the `at`-th place in the package where the interpreter looks for signals; whether it
    came so far."""
    places = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal places
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            places += 1
            if places == at:
                raise Interrupt

    sys.setprofile(look)
    try:
        with suppress(Interrupt):
            call()
    finally:
        sys.setprofile(None)
    return places >= at


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one as a generator is let go
def test_wherever_an_interrupt_comes_an_image_is_unsent_or_uncertain_or_sent_and_no_two_of_these(
    proxy: Proxy, client: redis.Redis, line: str
) -> None:
    through, at, more = connect(proxy.url), 0, True
    while more:
        at += 1
        each = f"{line}-{at}"
        producer = Producer(through, each, batch=2)
        proxy.drop_reply(b"XADD")
        with pytest.raises(FateUnknownError):  # what this leaves uncertain is not taken for what is added next
            producer.send([image(9)])
        producer.add(image(0))
        more = interrupted(lambda producer=producer: producer.add(image(1)), at)  # type: ignore[misc]  # mypy sees no default's type
        arrived, kept, unsure = "".join(sent(client, each)), ids(producer.unsent), ids(producer.uncertain)
        assert ("0" in arrived) + ("0" in kept) == 1 or ("0" in unsure and "0" not in kept), at
        producer.close()
        assert "".join(sent(client, each)) in ("9", "90", "901"), at
        assert "0" in "".join(sent(client, each)) + unsure, at
    assert at > 50
    assert arrived == "901"
