"""The producer of an asyncio program."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, cast

import redis
from redis import asyncio as aio
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry as AsyncioRetry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.connection import SSLConnection as BlockingSSLConnection
from redis.connection import UnixDomainSocketConnection as BlockingUnixDomainSocketConnection

from worker.errors import ConfigurationError
from worker.message import Image
from worker.producer.blocking import redis_settings
from worker.producer.collecting import BATCH_BYTES, Collector, check, check_entry
from worker.producer.flow import MAX_AHEAD, Flow, Retry, Steps
from worker.settings import LimitSettings, RedisSettings
from worker.streams.address import Address, address
from worker.streams.client import first_answer

CONNECTIONS: dict[Any, Any] = {
    BlockingSSLConnection: SSLConnection,
    BlockingUnixDomainSocketConnection: UnixDomainSocketConnection,
}


async def connect_async(to: str | RedisSettings) -> aio.Redis:
    """A client of a url or the [redis] table for an event loop; it repeats nothing. `aclose` it at the end.

    Raises:
        RedisUnreachableError: with the address, less its password.
        ConfigurationError: likewise; also for a Redis Cluster, which `connect` alone knows.
    """
    settings = redis_settings(to)
    with first_answer(settings, only_adds=True):
        client = _client(address(settings))
        await client.ping()
    return client


def _client(to: Address) -> aio.Redis:
    if to.cluster:
        raise ConfigurationError(
            "a redis+cluster:// address with AsyncProducer; expected one server or sentinels: a "
            "Cluster is for `connect` and Producer"
        )
    once = AsyncioRetry(NoBackoff(), 0)
    options = {**to.options, "retry": once}
    if to.sentinels:
        sentinel_class: Any = Sentinel  # redis-py annotates none of it
        sentinel = sentinel_class(to.sentinels, sentinel_kwargs={**to.sentinel_options, "retry": once})
        master: aio.Redis = sentinel.master_for(to.master, **options)
        return master
    kind = CONNECTIONS.get(options.pop("connection_class", None), Connection)
    return aio.Redis.from_pool(aio.ConnectionPool(connection_class=kind, **options))


class AsyncProducer:
    """Producer's like for an event loop: the same arguments, and `await` before what may wait.

    Tasks may share it: one sends at a time. A task that is cancelled while it waits for pace or room has added nothing;
    where it was cancelled within the XADD, `uncertain` has the images. `sent` and `held` are called in the loop.
    """

    def __init__(
        self,
        client: aio.Redis,
        line: str,
        *,
        rate: float = 0.0,
        max_ahead: int | None = MAX_AHEAD,
        retry: Retry | None = None,
        batch: int = 8,
        batch_bytes: int = BATCH_BYTES,
        linger: float | None = None,
        limits: LimitSettings | None = None,
        held: Callable[[str], None] | None = None,
        sent: Callable[[str, list[Image]], None] | None = None,
    ) -> None:
        self.client = client
        self.sent = sent
        self._flow = Flow(line, rate, max_ahead, retry, held)
        self._collector = Collector(batch, batch_bytes, linger, limits, distinct=retry is not None)
        self._lingering: asyncio.Task[None] | None = None
        self._failure: Exception | None = None  # of what lingered; the next call raises it
        self._lock = asyncio.Lock()

    @property
    def line(self) -> str:
        return self._flow.line

    @property
    def rate(self) -> float:
        """Images per second; 0 is as fast as they are accepted."""
        return self._flow.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._flow.rate = rate

    @property
    def unsent(self) -> list[Image]:
        """Images that `add` took and that are not in Redis, for certain; the next call sends those of full entries."""
        return self._collector.unsent(self._flow.uncertain)

    @property
    def uncertain(self) -> list[Image]:
        """Images of the entry that is going out or went out last, while nobody knows whether it arrived."""
        return list(self._flow.uncertain)

    async def add(self, image: Image) -> None:
        """As Producer.add."""
        beside = check(image, self._collector.limits)
        async with self._lock:
            await self._send_full()
            if self._collector.add(image, beside, timed=self._lingering is not None):
                if self._lingering is not None:
                    self._lingering.cancel()
                self._lingering = asyncio.create_task(self._linger())
            await self._send_full()

    async def flush(self) -> None:
        """As Producer.flush."""
        async with self._lock:
            self._collector.close()
            await self._send_full()

    async def send(self, images: Sequence[Image]) -> str:
        """As Producer.send; gives the entry's id."""
        check_entry(images, self._collector.limits)
        async with self._lock:
            entry = await self._send(list(images))
            self._added(entry, images)
            return entry

    async def ahead(self) -> int:
        """As Producer.ahead."""
        return int(await self._carry_out(self._flow.counting()))

    async def aclose(self) -> None:
        """As Producer.close."""
        try:
            await self.flush()
        finally:
            await self._end_lingering()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if kind is None:
            await self.aclose()
        else:
            await self._end_lingering()

    async def _send(self, images: Sequence[Image]) -> str:
        return str(await self._carry_out(self._flow.sending(images)))

    def _added(self, entry: str, images: Sequence[Image]) -> None:
        self._flow.uncertain = ()  # before anyone is told, who may raise
        if self.sent is not None:
            self.sent(entry, list(images))

    async def _send_full(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        while self._collector.full:
            images = self._collector.full[0]
            try:
                entry = await self._send(images)
            finally:
                if self._flow.uncertain is images:  # it is there, or may be, and then it is the caller's to decide
                    del self._collector.full[0]
            self._added(entry, images)

    async def _linger(self) -> None:
        await asyncio.sleep(self._collector.linger or 0.0)
        async with self._lock:
            if self._lingering is not asyncio.current_task():  # its entry was filled, and another one is collected
                return
            try:
                self._collector.close()
                await self._send_full()
            except Exception as error:  # also of `sent`: this task has nobody to tell
                self._failure = error

    async def _end_lingering(self) -> None:
        lingering, self._lingering = self._lingering, None
        if lingering is not None:
            lingering.cancel()
            await asyncio.wait([lingering])

    async def _carry_out(self, steps: Steps) -> Any:
        task, answer = cast(asyncio.Task[Any], asyncio.current_task()), None
        cancels = task.cancelling()
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value
            if callable(step):
                try:
                    answer = await step(self.client)
                except redis.RedisError as error:
                    answer = error
                if task.cancelling() > cancels:  # wait_for of Python 3.11, within redis-py, may swallow it
                    raise asyncio.CancelledError
            else:
                await asyncio.sleep(step)
                answer = False  # never stopped, only cancelled
