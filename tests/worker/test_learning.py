"""Learning in its turn, and leases beside learning that takes its time."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.helpers import eventually, item, message
from worker.answering import Answering
from worker.daemon import Worker
from worker.lease import LAPSE_SECONDS, RENEW_SECONDS

LONGER = LAPSE_SECONDS + 13


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By which leases go."""
    clock = [1000.0]
    monkeypatch.setattr("worker.lease.time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


@pytest.fixture
def worker(clock: list[float], settings: Any, line: str) -> Iterator[Worker]:
    """Keeps the line; by its clock no time has gone by."""
    worker = Worker(settings(line))
    worker.startup()
    worker._recover()
    worker._turn()
    assert worker.keepers[line].epoch == 1
    yield worker
    worker.drain()
    worker.shutdown()


def turn_until(worker: Worker, what: Callable[[], object]) -> None:
    def turned() -> object:
        worker._turn()
        return what()

    eventually(turned)


def test_while_a_thread_judges_for_long_the_leases_are_renewed(worker: Worker, clock: list[float], line: str) -> None:
    lease = worker.keepers[line].lease
    for _ in range(5):
        clock[0] += RENEW_SECONDS
        worker.answering.stands_still = True
        assert not worker.learning.turn(worker.keepers, worker._guarded)
        assert lease.held
    assert (lease.lapsed, worker.keepers[line].epoch) == (False, 1)


def test_a_line_that_was_lost_while_a_thread_judged_is_let_go_by_its_next_turn(
    worker: Worker, clock: list[float], client: redis.Redis, line: str
) -> None:
    keeper = worker.keepers[line]
    client.delete(keeper.streams.lease)
    type(keeper.streams)(client, line).acquire("other#1", 0)
    clock[0] += RENEW_SECONDS
    worker.answering.stands_still = True
    worker.learning.turn(worker.keepers, worker._guarded)
    assert keeper.epoch == 1
    worker.answering.stands_still = False
    worker.learning.turn(worker.keepers, worker._guarded)  # although the other attempt was but a moment ago
    assert keeper.epoch == 0


def test_a_batch_that_takes_longer_than_a_lease_has_its_line_learn_all_the_same(
    worker: Worker, clock: list[float], client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_long(*_: object) -> None:
        clock[0] += LONGER
        client.delete(keeper.streams.lease)  # it has ended

    keeper = worker.keepers[line]
    monkeypatch.setattr(worker.answering.cache, "capacity", 0)  # learning makes its own pass
    monkeypatch.setattr("worker.engine.failpoint", takes_long)
    with capture_logs() as logs:
        for number in range(4):
            client.xadd(keeper.streams.images, {"batch": message(*(item(f"{number}{n}") for n in range(4)))})
        turn_until(worker, lambda: keeper.streams.state()["applied_through"] == keeper.streams.last_id())
    assert keeper.streams.state()["epoch"] == "1"
    assert keeper.line.learner.images_seen_ == 16
    told = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert told
    assert all(event.startswith("the lease lapsed, and nobody took it") for event in told)


def test_learning_is_over_after_a_step_where_a_thread_waits_for_its_next_batch(
    worker: Worker, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 4 * [1]  # entries
    monkeypatch.setattr(worker.keepers[line], "learn", lambda *_: left.pop() if left else 0)
    for waits, learned in ((True, 1), (False, 3)):
        monkeypatch.setattr(Answering, "threads_wait", waits)
        before = len(left)
        assert worker.learning.turn(worker.keepers, worker._guarded) == waits
        assert before - len(left) == learned


def test_who_lost_the_line_in_a_batch_that_took_longer_than_a_lease_commits_nothing(
    worker: Worker, clock: list[float], client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_long(*_: object) -> None:
        clock[0] += LONGER
        client.delete(keeper.streams.lease)
        if "holder" not in taken:
            taken["epoch"] = other.acquire(taken.setdefault("holder", "other#1"), 0)[0]

    keeper, taken = worker.keepers[line], dict[str, Any]()
    other = type(keeper.streams)(client, line)
    monkeypatch.setattr(worker.answering.cache, "capacity", 0)
    monkeypatch.setattr("worker.engine.failpoint", takes_long)
    before = keeper.streams.state()
    client.xadd(keeper.streams.images, {"batch": message(*(item(str(n)) for n in range(16)))})
    with capture_logs() as logs:
        turn_until(worker, lambda: not keeper.epoch)
    assert taken["epoch"] == 2
    assert "line lost to another keeper" in [entry["event"] for entry in logs]
    after = keeper.streams.state()
    assert (after["epoch"], after["holder"]) == ("2", "other#1")
    assert {name: after.get(name) for name in ("model", "applied_through")} == {
        name: before.get(name) for name in ("model", "applied_through")
    }


def test_after_an_outage_longer_than_a_lease_the_line_is_opened_under_a_higher_epoch(
    worker: Worker, clock: list[float], line: str
) -> None:
    """A server that was promoted meanwhile may not know who had it in between."""
    keeper = worker.keepers[line]
    clock[0] += LONGER
    with capture_logs() as logs:
        worker._recover()
        assert keeper.epoch == 0
        turn_until(worker, lambda: keeper.epoch)
    assert keeper.epoch > 1
    events = [entry["event"] for entry in logs]
    assert "the lease lapsed meanwhile; the line is opened anew" in events
    assert "line lost to another keeper" not in events
