"""AsyncProducer does in an event loop what Producer does, on a real Redis and a real worker."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import redis

from tests.conftest import PrivateRedis
from tests.servers import started
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import encoded, eventually, picture
from tests.worker.playing import answered, results
from tests.worker.turning import Run
from worker.errors import ConfigurationError, FateUnknownError, RedisUnreachableError, RejectedError, WorkerError
from worker.message import Image
from worker.producer import AsyncProducer, Retry, connect_async, flow
from worker.settings import Settings
from worker.streams.line_streams import LineStreams

DATA = encoded(picture())


@asynccontextmanager
async def producing(url: str, line: str, **options: Any) -> AsyncIterator[AsyncProducer]:
    client = await connect_async(url)
    try:
        async with AsyncProducer(client, line, **options) as producer:
            yield producer
    finally:
        await client.aclose()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    proxy = Proxy(redis.Redis.from_url(redis_url).connection_pool.connection_kwargs["port"])
    yield proxy
    proxy.close()


def image(number: int) -> Image:
    return Image(str(number), "png", DATA)


def sent(client: redis.Redis, line: str) -> list[str]:
    """Each entry's ids, joined."""
    entries = cast(list[tuple[bytes, dict[bytes, bytes]]], client.xrange(f"mhpc:{{{line}}}:images"))
    return ["".join(item["id"] for item in msgpack.unpackb(fields[b"batch"])["images"]) for _, fields in entries]


def ids(images: list[Image]) -> str:
    return "".join(image.id for image in images)


async def until(what: Callable[[], Any]) -> None:
    await asyncio.to_thread(eventually, what)


def run_async(work: Awaitable[None]) -> None:
    async def main() -> None:
        await work

    asyncio.run(main())


def test_entries_are_filled_flushed_and_sent_at_the_end_of_the_block(
    redis_url: str, client: redis.Redis, line: str
) -> None:
    heard: list[str] = []

    async def work() -> None:
        async with producing(redis_url, line, batch=3, sent=lambda _, images: heard.append(ids(images))) as producer:
            for number in range(5):
                await producer.add(image(number))
            assert ids(producer.unsent) == "34"
            await producer.flush()
            entry = await producer.send([image(5)])
            assert entry == LineStreams(client, line).last_id()
            assert await producer.ahead() == 3
            await producer.add(image(6))

    run_async(work())
    assert sent(client, line) == heard == ["012", "34", "5", "6"]


def test_an_image_waits_for_others_no_longer_than_it_may_linger(redis_url: str, client: redis.Redis, line: str) -> None:
    async def work() -> None:
        async with producing(redis_url, line, batch=3, linger=0.05) as producer:
            await producer.add(image(0))
            await until(lambda: sent(client, line) == ["0"])
            for number in (1, 2, 3, 4):
                await producer.add(image(number))
            await until(lambda: "".join(sent(client, line)) == "01234")

    run_async(work())


def test_what_goes_wrong_while_an_image_lingers_is_raised_by_the_next_call(
    redis_url: str, client: redis.Redis, line: str
) -> None:
    client.set(f"mhpc:{{{line}}}:images", "not a stream")

    async def work() -> None:
        async with producing(redis_url, line, max_ahead=None, linger=0.01) as producer:
            await producer.add(image(0))
            await until(lambda: producer._failure)
            with pytest.raises(WorkerError, match="WRONGTYPE"):
                await producer.add(image(1))
            assert ids(producer.unsent) == "0"
            client.delete(f"mhpc:{{{line}}}:images")

    run_async(work())
    assert sent(client, line) == ["0"]


def test_it_stops_at_max_ahead_and_a_task_that_is_cancelled_there_has_added_nothing(
    redis_url: str, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "HELD_SECONDS", 0.05)
    heard: list[str] = []

    async def work() -> None:
        async with producing(redis_url, line, max_ahead=1, held=heard.append) as producer:
            await producer.send([image(0)])
            waiting = asyncio.create_task(producer.send([image(1)]))
            await until(lambda: heard)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert producer.uncertain == []

    run_async(work())
    assert heard == [f"1 entries of line {line} wait for an answer; does its worker run?"]
    assert sent(client, line) == ["0"]


def test_the_rate_holds(redis_url: str, client: redis.Redis, line: str) -> None:
    async def work() -> None:
        async with producing(redis_url, line, rate=1.0, batch=2) as producer:
            producer.rate = 20.0
            began = asyncio.get_running_loop().time()
            for number in range(8):
                await producer.add(image(number))
            assert asyncio.get_running_loop().time() - began >= 6 / 20  # the first entry goes at once

    run_async(work())


def test_replies_that_are_lost_leave_each_image_answered_once(
    run: Run, settings: Callable[..., Settings], proxy: Proxy, client: redis.Redis, line: str
) -> None:
    run(settings(line, streams={"unique_ids": 64}))

    async def work() -> None:
        async with producing(f"{proxy.url}?socket_timeout=1", line, batch=4, retry=Retry(64)) as producer:
            for number in range(16):
                if number % 8 == 0:
                    proxy.drop_reply(b"XADD", times=2)
                await producer.add(image(number))
            proxy.half_open()
            threading.Timer(0.3, proxy.mend).start()
            for number in range(16, 20):
                await producer.add(image(number))

    run_async(work())
    assert proxy.dropped == 4
    answered(client, line, 20)
    eventually(lambda: client.xpending(f"mhpc:{{{line}}}:images", "mhpc")["pending"] == 0)
    assert Counter(result["id"] for result in results(client, line)) == {str(number): 1 for number in range(20)}


def test_without_retry_an_entry_whose_fate_is_unknown_is_named_and_left_out(
    proxy: Proxy, client: redis.Redis, line: str
) -> None:
    async def work() -> None:
        async with producing(proxy.url, line, batch=2) as producer:
            await producer.add(image(0))
            proxy.drop_reply(b"XADD")
            with pytest.raises(FateUnknownError) as told:
                await producer.add(image(1))
            assert told.value.ids == ("0", "1")
            assert (ids(producer.uncertain), producer.unsent) == ("01", [])
            await producer.add(image(2))

    run_async(work())
    assert sent(client, line) == ["01", "2"]


def test_a_task_that_is_cancelled_within_the_xadd_leaves_its_images_uncertain_and_not_to_be_sent_again(
    proxy: Proxy, client: redis.Redis, line: str
) -> None:
    async def work() -> None:
        async with producing(proxy.url, line, batch=1, max_ahead=None) as producer:
            proxy.delay(30)
            adding = asyncio.create_task(producer.add(image(0)))
            await until(lambda: sent(client, line) == ["0"])
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            assert (ids(producer.uncertain), producer.unsent) == ("0", [])

    run_async(work())


def test_many_tasks_share_a_producer_and_nothing_is_lost(redis_url: str, client: redis.Redis, line: str) -> None:
    async def work() -> None:
        async with producing(redis_url, line, batch=4, max_ahead=None, linger=0.001) as producer:
            await asyncio.gather(*(producer.add(image(number)) for number in range(100, 200)))

    run_async(work())
    names = "".join(sent(client, line))
    assert sorted(names[i : i + 3] for i in range(0, 300, 3)) == [str(number) for number in range(100, 200)]


def test_a_block_that_ends_by_an_exception_sends_nothing_more(redis_url: str, client: redis.Redis, line: str) -> None:
    async def work() -> None:
        async with producing(redis_url, line, linger=30) as producer:
            await producer.add(image(0))
            raise KeyError

    with pytest.raises(KeyError):
        run_async(work())
    assert sent(client, line) == []


def test_what_a_worker_would_refuse_is_refused(redis_url: str, line: str) -> None:
    async def work() -> None:
        async with producing(redis_url, line) as producer:
            bad = Image("x" * 513, "png", DATA)
            with pytest.raises(RejectedError, match="513 characters"):
                await producer.add(bad)
            with pytest.raises(RejectedError, match="513 characters"):
                await producer.send([bad])

    run_async(work())


# -- the way to Redis --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        ("redis://:hunter2@127.0.0.1:1/0", RedisUnreachableError, "redis://127.0.0.1:1/0 is not reached"),
        ("redis://:hunter2@127.0.0.1:port/0", ConfigurationError, "is not an address"),
        ("redis+cluster://127.0.0.1:1", ConfigurationError, "a Cluster is for `connect` and Producer"),
        ("redis+sentinel://127.0.0.1:1/m", RedisUnreachableError, "no sentinel at .* knows a master"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_clear_error(url: str, error: type[WorkerError], text: str) -> None:
    with pytest.raises(error, match=text) as told:
        asyncio.run(connect_async(url))
    assert "hunter2" not in str(told.value)


def test_who_may_not_even_ping_gets_in_and_sends(private_redis: PrivateRedis, line: str) -> None:
    admin = redis.Redis(port=private_redis.port, protocol=2)
    admin.acl_setuser("camera", enabled=True, passwords=["+s"], keys=[f"mhpc:{{{line}}}:images"], commands=["+xadd"])

    async def work() -> None:
        async with producing(private_redis.url.replace("//", "//camera:s@"), line, max_ahead=None) as producer:
            await producer.send([image(0)])

    run_async(work())
    assert sent(admin, line) == ["0"]


def test_a_socket_on_this_machine_will_do(tmp_path: Path, line: str) -> None:
    socket = tmp_path / "redis.sock"

    async def work() -> None:
        async with producing(f"unix://{socket}", line) as producer:
            await producer.send([image(0)])

    with started(tmp_path, "--port", "0", "--unixsocket", str(socket), "--save", ""):
        eventually(socket.exists)
        run_async(work())
