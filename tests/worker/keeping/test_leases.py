import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually
from tests.worker.playing import send
from worker.daemon import Worker
from worker.keeping import leases

LINES = 5
SILENT_SECONDS = 1.5


@pytest.fixture
def worker(proxy: Proxy, settings: Any, line: str) -> Iterator[Worker]:
    """Keeps its lines, by a way that may fall silent."""
    names = [f"{line}-{number}" for number in range(LINES)]
    worker = Worker(settings(*names, url=f"{proxy.url}?socket_timeout=60"))
    worker.startup()
    worker._recover()
    worker._turn()
    assert all(keeper.epoch for keeper in worker.keepers.values())
    yield worker
    worker.shutdown()


def falls_silent(worker: Worker, proxy: Proxy) -> None:
    """Nothing is answered any more, which is waited for briefly: as long as there are answers, they may take long."""
    pool = worker.client.connection_pool
    pool.connection_kwargs["socket_timeout"] = SILENT_SECONDS
    for connection in pool._available_connections:
        connection._sock.settimeout(SILENT_SECONDS)
    proxy.half_open()


def asked(proxy: Proxy) -> int:
    """Connections so far: one that waited in vain is not used again."""
    return proxy.accepted


def test_a_stop_waits_once_for_a_redis_that_does_not_answer_however_many_lines_are_kept(
    worker: Worker, proxy: Proxy
) -> None:
    before = asked(proxy)
    falls_silent(worker, proxy)
    with capture_logs() as logs:
        worker.drain()
    assert asked(proxy) - before <= 1
    told = [entry["line"] for entry in logs if entry["event"] == "not drained; its entries come again"]
    assert told == list(worker.keepers)
    assert [keeper.epoch for keeper in worker.keepers.values()] == [0] * LINES


def test_a_stop_releases_all_lines_though_one_was_taken_by_another(worker: Worker, client: redis.Redis) -> None:
    first, *others = worker.keepers.values()
    client.set(first.streams.lease, "other#1")
    first.streams.acquire("other#1", 0)
    worker.drain()
    assert eventually(lambda: not client.exists(*(keeper.streams.lease for keeper in others)))
    assert client.get(first.streams.lease) == b"other#1"


def test_leases_are_not_asked_for_one_by_one_where_redis_does_not_answer(worker: Worker, proxy: Proxy) -> None:
    for keeper in worker.keepers.values():
        keeper.lease._renew_at = 0.0
    before = asked(proxy)
    falls_silent(worker, proxy)
    with pytest.raises(redis.TimeoutError):
        leases.renew(worker.keepers.values())
    assert asked(proxy) - before <= 1
    worker._in_a_turn()  # whose own commands find it out
    assert asked(proxy) - before <= 2


def commands(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each that is sent from now on, on whichever thread."""

    def asked() -> Any:
        found.append("asked")
        return given()

    found, pool = list[str](), worker.client.connection_pool
    given = pool.get_connection
    monkeypatch.setattr(pool, "get_connection", asked)
    return found


def test_a_stop_asks_nothing_of_a_redis_that_was_not_reached_when_it_came(
    worker: Worker, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits_in_vain() -> None:
        worker.stopping.set()  # meanwhile
        falls_silent(worker, proxy)
        worker.client.ping()

    monkeypatch.setattr(worker, "_turn", waits_in_vain)
    worker.run()
    sent = commands(worker, monkeypatch)
    with capture_logs() as logs:
        worker.drain()
    assert sent == []
    told = [entry["line"] for entry in logs if entry["event"] == "not drained; its entries come again"]
    assert told == list(worker.keepers)


def test_a_stop_with_pictures_in_hand_waits_once_for_a_redis_that_does_not_answer(
    worker: Worker, proxy: Proxy, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> bool:
        worker._turn()
        return len(worker.answering._hand) == LINES

    for name in worker.keepers:
        send(client, name, 1, 4)
    with monkeypatch.context() as waits:
        waits.setattr(worker.answering.batcher, "take", lambda *given, **more: [])
        eventually(read)
    for keeper in worker.keepers.values():
        keeper.lease._renew_at = 0.0  # after the first batch
    worker.stopping.set()
    sent = commands(worker, monkeypatch)
    falls_silent(worker, proxy)
    worker.drain()
    assert sent == ["asked"]


def test_who_stops_over_a_connection_that_was_made_again_says_so_of_each_line(worker: Worker, proxy: Proxy) -> None:
    proxy.cut()
    proxy.mend()
    with capture_logs() as logs:
        worker.drain()
    told = [entry["error"] for entry in logs if entry["event"] == "not drained; its entries come again"]
    assert len(told) == LINES
    assert all("it may be another server" in error for error in told)


def test_a_stop_whose_last_turn_meets_connections_that_ended_drains_all_the_same(
    worker: Worker, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_turn() -> None:
        worker.stopping.set()
        for connection in worker.client.connection_pool._available_connections:
            connection._sock.shutdown(socket.SHUT_RDWR)
        monkeypatch.undo()  # one more turn looks, and is as ever
        worker._turn()

    worker.connected = True
    monkeypatch.setattr(worker, "_turn", last_turn)
    with capture_logs() as logs:
        worker.run()
        worker.drain()
    events = [entry["event"] for entry in logs]
    assert "not drained; its entries come again" not in events
    assert any(event.startswith("a connection to Redis had ended") for event in events)
    assert eventually(lambda: not client.exists(*(keeper.streams.lease for keeper in worker.keepers.values())))
