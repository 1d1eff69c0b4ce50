"""Learning in its turn, and leases beside learning that takes its time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.helpers import DEADLINE_SECONDS, encoded, eventually, item, message
from tests.worker.keepers import pending
from worker.answering.opening import LARGE_BYTES
from worker.answering.turns import Answering
from worker.daemon import Worker
from worker.keeping.lease import LAPSE_SECONDS, RENEW_SECONDS
from worker.settings import Settings
from worker.streams.line_streams import Entry, LineStreams
from worker.streams.reads import read_new

LONGER = LAPSE_SECONDS + 13


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By which leases go."""
    clock = [1000.0]
    monkeypatch.setattr("worker.keeping.lease.time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


@contextmanager
def keeping(settings: Settings) -> Iterator[Worker]:
    """A worker that keeps its lines, to be turned by the test."""
    worker = Worker(settings)
    worker.startup()
    worker._recover()
    worker._turn()
    assert {keeper.epoch for keeper in worker.keepers.values()} == {1}
    yield worker
    worker.drain()
    worker.shutdown()


@pytest.fixture
def worker(clock: list[float], settings: Any, line: str) -> Iterator[Worker]:
    """Keeps the line; by its clock no time has gone by."""
    with keeping(settings(line)) as worker:
        yield worker


def turn_until(worker: Worker, what: Callable[[], object]) -> None:
    def turned() -> object:
        worker._turn()
        return what()

    eventually(turned)


def turn_until_answered(worker: Worker, streams: LineStreams, images: int) -> None:
    """By results alone: a turn every few seconds trims the entries that they are of."""
    turn_until(worker, lambda: streams.client.xlen(streams.scores) == images)


def test_while_a_thread_judges_for_long_the_leases_are_renewed(worker: Worker, clock: list[float], line: str) -> None:
    lease = worker.keepers[line].lease
    for _ in range(5):
        clock[0] += RENEW_SECONDS
        worker.answering.stands_still = True
        assert not worker.learning.turn(worker.client, worker.keepers, worker._guarded)
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
    worker.learning.turn(worker.client, worker.keepers, worker._guarded)
    assert keeper.epoch == 1
    worker.answering.stands_still = False
    worker.learning.turn(worker.client, worker.keepers, worker._guarded)  # although it has just tried
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


def decoded_in_turns(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Semaphore, list[threading.Thread]]:
    """Dense pictures wait for a release each, but on the loop; the threads that decode them."""
    by, go, loop = list[threading.Thread](), threading.Semaphore(0), threading.current_thread()

    def takes_a_turn(_: str, identity: str) -> None:
        if identity.startswith("dense"):
            by.append(threading.current_thread())
            if by[-1] is not loop:
                go.acquire(timeout=DEADLINE_SECONDS)

    monkeypatch.setattr("worker.answering.opening.failpoint", takes_a_turn)
    return go, by


def test_an_entry_that_takes_long_to_decode_is_decoded_by_threads_alone_and_other_lines_are_answered_meanwhile(
    settings: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, by = decoded_in_turns(monkeypatch)
    monkeypatch.setattr("worker.answering.turns.decoding_threads", lambda: 2)
    monkeypatch.setattr("worker.answering.batching.LINE_AHEAD_BYTES", LARGE_BYTES)  # for which a megapixel is huge
    monkeypatch.setattr("worker.learning.SOON_SECONDS", 0.0)
    with keeping(settings(line, f"{line}-other")) as worker:
        slow, other = (keeper.streams for keeper in worker.keepers.values())
        dense = [item(f"dense {n}", data=encoded(np.full((1000, 1000), n, np.uint8))) for n in range(40)]
        client.xadd(slow.images, {"batch": message(*dense)})
        for number in range(40):
            assert client.xlen(slow.scores) == 0
            client.xadd(other.images, {"batch": message(item(str(number)))})
            turn_until_answered(worker, other, number + 1)
            go.release()
        turn_until(worker, lambda: client.xlen(slow.scores) == worker.keepers[line].line.learner.images_seen_ == 40)
        assert [thread is threading.current_thread() for thread in by] == 40 * [False]
        assert {keeper.epoch for keeper in worker.keepers.values()} == {1}


def test_an_entry_that_leaves_no_features_is_not_waited_for_long(
    worker: Worker, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, at = [0.0], ["1-0"]
    monkeypatch.setattr("worker.learning.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Answering, "gives_features_soon", lambda *_: True)
    monkeypatch.setattr(worker.answering.batcher, "at", lambda _: at[0])
    for now[0] in (0.0, 100.0, 200.0):  # answering is at it all the time
        assert not worker.learning._may_learn(line)
    at[0] = "2-0"
    for now[0] in (201.0, 205.0):
        assert not worker.learning._may_learn(line)
    for at[0], now[0] in (("2-0", 205.1), ("3-0", 206.0), ("", 207.0)):
        assert worker.learning._may_learn(line)
    monkeypatch.setattr(Answering, "gives_features_soon", lambda *_: False)
    assert worker.learning._may_learn(line)
    monkeypatch.setattr(Answering, "gives_features_soon", lambda *_: True)
    assert not worker.learning._may_learn(line)


def test_an_entry_that_learning_itself_takes_longer_to_decode_than_a_lease_lasts_leaves_the_line_kept(
    worker: Worker, clock: list[float], client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_long(*_: object) -> None:
        clock[0] += RENEW_SECONDS * (threading.current_thread() is loop)

    keeper, loop = worker.keepers[line], threading.current_thread()
    monkeypatch.setattr(worker.answering.cache, "capacity", 0)
    monkeypatch.setattr("worker.answering.opening.failpoint", takes_long)
    monkeypatch.setattr("worker.answering.opening.time", SimpleNamespace(monotonic=lambda: clock[0]))
    before = clock[0]
    client.xadd(keeper.streams.images, {"batch": message(*(item(str(n)) for n in range(16)))})
    turn_until(worker, lambda: keeper.line.learner.images_seen_ == 16)
    worker.learning._usable(line, keeper.streams.entry(keeper.streams.last_id()))  # as for what is set aside
    assert clock[0] >= before + 2 * 16 * RENEW_SECONDS
    assert (keeper.lease.lapsed, keeper.epoch) == (False, 1)


MANY = 24  # pictures, that together take learning too long to decode


def answered_elsewhere(streams: LineStreams) -> None:
    """An entry of dense pictures, of which this worker's answering is told nothing."""
    streams.client.xadd(streams.images, {"batch": of_many()})
    read_new(streams.client, {streams: 1}, "another")


def of_many() -> bytes:
    return message(*(item(f"dense {n}", data=encoded(np.full((1000, 1000), n, np.uint8))) for n in range(MANY)))


def test_what_answering_has_not_decoded_and_takes_long_is_decoded_by_a_thread_and_other_lines_are_answered_meanwhile(
    settings: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, by = decoded_in_turns(monkeypatch)
    with keeping(settings(line, f"{line}-other")) as worker:
        slow, other = (keeper.streams for keeper in worker.keepers.values())
        answered_elsewhere(slow)
        client.xadd(slow.images, {"batch": message(item("next"))})
        for number in range(MANY):
            client.xadd(other.images, {"batch": message(item(str(number)))})
            turn_until_answered(worker, other, number + 1)
            assert sum(worker.keepers[line].line.counts) == 0
            go.release()
        turn_until(worker, lambda: sum(worker.keepers[line].line.counts) == MANY + 1)
        assert [thread is threading.current_thread() for thread in by] == MANY * [False]
        turn_until(worker, lambda: pending(slow) == [])
        assert {keeper.epoch for keeper in worker.keepers.values()} == {1}


def test_a_stop_waits_for_the_one_picture_that_is_decoded_for_learning_and_the_entry_comes_again(
    settings: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_until_the_end(_: str, identity: str) -> None:
        decoded.append(identity)
        eventually(lambda: worker.answering._for_learning._shutdown)

    decoded: list[str] = []
    with keeping(settings(line)) as worker:
        monkeypatch.setattr("worker.answering.opening.failpoint", takes_until_the_end)
        answered_elsewhere(worker.keepers[line].streams)
        turn_until(worker, lambda: decoded)
    assert decoded == ["dense 0"]
    assert len(pending(worker.keepers[line].streams)) == 1


def test_pixels_are_kept_while_a_line_learns(worker: Worker, client: redis.Redis, line: str) -> None:
    keeper, opening = worker.keepers[line], worker.answering.opening
    for paused in (False, True):
        keeper.line.paused = paused
        client.xadd(keeper.streams.images, {"batch": message(item(data=encoded(np.zeros((1000, 1000), np.uint8))))})
        turn_until_answered(worker, keeper.streams, 1 + paused)
        assert len(opening._kept) == (not paused)


def test_an_entry_is_put_off_once_and_once_more_where_the_line_was_lost_meanwhile(worker: Worker, line: str) -> None:
    learning, entry = worker.learning, Entry("1-0", of_many())
    assert not learning._ready(line, entry)
    eventually(lambda: learning._may_learn(line))
    worker.answering.opening.let_keep(False)
    assert learning._ready(line, entry)
    worker.keepers[line].lose("another has it")
    learning.turn(worker.client, worker.keepers, worker._guarded)
    assert not learning._ready(line, entry)
