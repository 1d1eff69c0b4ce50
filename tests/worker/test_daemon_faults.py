"""What goes wrong around a worker, and what it makes of that."""

import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.helpers import LosesReplies, eventually, item, message
from tests.worker.playing import answered, in_phase, results, send
from tests.worker.turning import Run, get, running
from worker.daemon import Worker
from worker.errors import ModelError
from worker.line import CALIBRATING, LEARNING, SCORING
from worker.settings import LineSettings, ScoringSettings
from worker.streams.control import send as command
from worker.streams.control import wait_for_reply
from worker.streams.line_streams import ANSWERING, LineStreams
from worker.streams.line_streams import LEARNING as LEARNING_GROUP
from worker.streams.reads import read_new
from worker.views import line_status


def backlog(worker: Worker, line: str) -> dict[str, float]:
    """What is told of what waits."""
    names = ("mhpc_stream_lag_entries", "mhpc_pending_entries", "mhpc_oldest_pending_seconds")
    found = {name: worker.metrics.registry.get_sample_value(name, {"line": line}) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def test_redis_may_be_killed_and_come_back_empty(
    private_redis: PrivateRedis, run: Run, settings: Any, line: str
) -> None:
    worker = run(settings(line, url=private_redis.url))
    client = redis.Redis(port=private_redis.port, protocol=2)
    send(client, line, 1, 24)
    answered(client, line, 24)
    eventually(lambda: in_phase(client, line, CALIBRATING) and len(backlog(worker, line)) == 3)
    private_redis.kill()
    assert eventually(lambda: get(worker, "/readyz") == (503, "Redis is not reached\n"))
    assert get(worker, "/healthz") == (200, "ok\n")
    assert get(worker, "/readyz?lines=0")[0] == 503
    eventually(lambda: backlog(worker, line) == {})  # nobody knows
    private_redis.start()
    send(client, line, 25, 64)
    assert [result["id"] for result in answered(client, line, 40)] == [str(number) for number in range(25, 65)]
    eventually(lambda: in_phase(client, line, SCORING))
    assert int(LineStreams(client, line).state()["epoch"]) > 1
    assert worker.keepers[line].line.learner.images_seen_ == 16
    assert (worker.metrics.registry.get_sample_value("mhpc_redis_reconnects_total") or 0) >= 1
    assert eventually(lambda: get(worker, "/readyz")[0] == 200)


def test_replies_may_be_lost_and_nothing_is_lost_or_counted_twice(
    private_redis: PrivateRedis, run: Run, settings: Any, line: str
) -> None:
    dice, armed = random.Random(0), threading.Event()
    proxy = LosesReplies(private_redis.port, lambda _: armed.is_set() and dice.random() < 0.04)
    worker = run(settings(line, url=f"redis://127.0.0.1:{proxy.port}/0"))
    client = redis.Redis(port=private_redis.port, protocol=2)
    armed.set()
    send(client, line, 1, 60, batch=1)
    answered(client, line, 60)
    eventually(lambda: in_phase(client, line, SCORING))
    armed.clear()
    assert proxy.lost
    assert [result["id"] for result in results(client, line)] == [str(number) for number in range(1, 61)]
    assert LineStreams(client, line).backlog(ANSWERING).pending == 0
    kept = worker.keepers[line].line
    assert kept.applied_through == results(client, line)[35]["entry"]
    assert (kept.learner.images_seen_, len(kept.calibration_scores)) == (16, 20)


@pytest.mark.parametrize("group", [ANSWERING, LEARNING_GROUP])
def test_a_group_that_is_destroyed_is_made_again(
    run: Run, settings: Any, client: redis.Redis, line: str, group: str
) -> None:
    run(settings(line))
    send(client, line, 1, 4)
    answered(client, line, 4)
    eventually(lambda: in_phase(client, line, LEARNING))
    client.xgroup_destroy(f"mhpc:{{{line}}}:images", group)
    send(client, line, 5, 36)
    eventually(lambda: in_phase(client, line, SCORING))
    eventually(lambda: {result["id"] for result in results(client, line)} == {str(number) for number in range(1, 37)})


def test_results_that_cannot_be_written_wait_and_are_written_once(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    run(settings(line))
    streams = LineStreams(client, line)
    client.set(streams.scores, "of another type")
    send(client, line, 1, 8)
    eventually(lambda: streams.backlog(ANSWERING).pending)
    client.delete(streams.scores)
    assert [result["id"] for result in answered(client, line, 8)] == [str(number) for number in range(1, 9)]
    assert streams.backlog(ANSWERING).pending == 0


def test_a_worker_that_lost_a_line_answers_on_and_takes_it_back(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    worker = run(settings(line))
    send(client, line, 1, 8)
    answered(client, line, 8)
    streams = LineStreams(client, line)
    assert streams.acquire("other#1", 0, take_over="station-1")[0] == 2
    send(client, line, 9, 12)
    answered(client, line, 12)
    eventually(lambda: worker.keepers[line].epoch == 0 and not worker.keepers[line].problem)
    assert get(worker, "/readyz") == (200, "ok\n")  # another keeps it, this one answers
    streams.release(2)
    send(client, line, 13, 36)
    eventually(lambda: in_phase(client, line, SCORING))
    assert int(streams.state()["epoch"]) == 3
    assert worker.keepers[line].line.learner.images_seen_ == 16
    assert [result["id"] for result in answered(client, line, 36)] == [str(number) for number in range(1, 37)]


def test_a_line_whose_stream_went_back_stops_alone(run: Run, settings: Any, client: redis.Redis, line: str) -> None:
    bad, good = f"{line}-bad", f"{line}-good"
    with running(settings(bad)):
        send(client, bad, 1, 8)
        answered(client, bad, 8)
        eventually(lambda: LineStreams(client, bad).state().get("model"))
    client.delete(f"mhpc:{{{bad}}}:images")
    client.xadd(f"mhpc:{{{bad}}}:images", {"batch": message(item())}, id="5-0")
    worker = run(settings(bad, good))
    send(client, good, 1, 8)
    answered(client, good, 8)
    status, text = get(worker, "/readyz")
    assert (status, text.startswith(f"line {bad}: the stream ends at 5-0")) == (503, True)
    assert good not in text
    assert get(worker, "/readyz?lines=0") == (200, "ok\n")
    eventually(lambda: len(backlog(worker, bad)) == 3)  # who is left alone waits all the same
    assert len(results(client, bad)) == 8
    assert LineStreams(client, bad).state()["problem"].startswith("the stream ends at 5-0")


def test_a_line_whose_stream_went_back_goes_on_from_there_when_it_is_told_to(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)
    with running(settings(line)):
        send(client, line, 1, 8)
        answered(client, line, 8)
        eventually(lambda: streams.state().get("applied_through") == streams.last_id())  # all eight are committed
    client.delete(streams.images)
    client.xadd(streams.images, {"batch": message(item())}, id="5-0")
    worker = run(settings(line))
    eventually(lambda: worker.keepers[line].stopped)
    early = command(streams, "calibrate", {}, "somebody")
    reply = wait_for_reply(streams, command(streams, "resync", {}, "somebody"), 20)
    assert wait_for_reply(streams, early, 5) == (False, "the line was stopped; say it again")
    assert reply is not None
    assert (reply.ok, reply.text.partition(";")[0]) == (True, "goes on behind 5-0")
    state = streams.state()
    assert (state["problem"], state["applied_through"]) == ("", "5-0")
    send(client, line, 9, 36)
    eventually(lambda: in_phase(client, line, SCORING))
    assert worker.keepers[line].line.learner.images_seen_ == 16  # 8 before, 8 after: the one at 5-0 is let go


def test_a_turn_that_takes_longer_than_a_lease_keeps_the_line(
    settings: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("worker.keeping.lease.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def takes_ten_seconds(*_: object) -> None:
        clock[0] += 10.0

    client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(*(item(str(n)) for n in range(32)))})
    worker = Worker(settings(line))
    worker.startup()
    try:
        worker._recover()
        monkeypatch.setattr(worker.answering.cache, "capacity", 0)  # learning takes the entry as a whole
        monkeypatch.setattr("worker.engine.failpoint", takes_ten_seconds)

        def turned() -> bool:
            worker._turn()
            return clock[0] > 1000  # one that stood still before it came to learning has no time left for it

        eventually(turned)
        assert clock[0] == 1040  # four batches learned, and none scored; by the lease's clock, longer than it lasts
        assert worker.keepers[line].lease.held
        assert worker.keepers[line].epoch == 1
    finally:
        worker.drain()
        worker.shutdown()


@pytest.mark.parametrize("key", ["scores", "images", "control"])
def test_a_key_of_the_wrong_type_stops_its_own_line_alone(
    run: Run, settings: Any, client: redis.Redis, line: str, key: str
) -> None:
    broken, well = f"{line}-a", f"{line}-b"
    if key != "control":
        client.set(f"mhpc:{{{broken}}}:{key}", "in the way")
    worker = run(settings(broken, well))
    if key == "control":  # it is not asked for before the line is kept
        eventually(lambda: worker.keepers[broken].epoch)
        client.set(f"mhpc:{{{broken}}}:{key}", "in the way")
    if key == "scores":
        send(client, broken, 1, 4)
    send(client, well, 1, 8)
    assert len(answered(client, well, 8)) == 8
    eventually(lambda: "WRONGTYPE" in get(worker, "/readyz")[1])
    if key == "scores":
        eventually(lambda: backlog(worker, broken).popitem()[1] > 0)
    if key == "images":
        eventually(lambda: backlog(worker, broken) == {})
    client.delete(f"mhpc:{{{broken}}}:{key}")
    if key != "scores":
        send(client, broken, 1, 4)
    assert len(answered(client, broken, 4)) == 4
    eventually(lambda: get(worker, "/readyz")[0] == 200)


def test_a_version_that_cannot_be_loaded_stops_its_own_line_alone(
    settings: Any, client: redis.Redis, line: str
) -> None:
    broken, well = f"{line}-a", f"{line}-b"
    with running(settings(broken, well)):
        for name in (broken, well):
            send(client, name, 1, 40)
            eventually(lambda name=name: in_phase(client, name, SCORING))  # type: ignore[misc]  # mypy sees no default's type
    lines = [LineSettings(name=broken, scoring=ScoringSettings(top_k=7)), LineSettings(name=well)]
    with running(settings(broken, well).model_copy(update={"lines": tuple(lines)})) as worker:
        send(client, well, 41, 48)
        assert len(answered(client, well, 48)) == 48
        eventually(lambda: "its version cannot be loaded" in get(worker, "/readyz")[1])
        assert well not in get(worker, "/readyz")[1]
        told = eventually(lambda: line_status(client, broken)["problem"])
        assert told.startswith("its version cannot be loaded: ")
        assert "scoring.top_k is 7, its model was calibrated with " in told
        assert line_status(client, well)["problem"] is None
    with running(settings(broken, well)):
        eventually(lambda: line_status(client, broken)["keeper"])
        assert line_status(client, broken)["problem"] is None


def test_a_worker_none_of_whose_lines_can_be_loaded_ends_at_its_start(
    settings: Any, client: redis.Redis, line: str
) -> None:
    names = f"{line}-a", f"{line}-b"
    with running(settings(*names)):
        for name in names:
            send(client, name, 1, 40)
            eventually(lambda name=name: in_phase(client, name, SCORING))  # type: ignore[misc]  # mypy sees no default's type
    worker = Worker(settings(*names, scoring={"top_k": 7}))
    worker.startup()
    try:
        with pytest.raises(ModelError, match=r"scoring\.top_k is 7"):
            worker.run()
        assert "scoring.top_k is 7" in str([line_status(client, name)["problem"] for name in names])
    finally:
        worker.shutdown()


def test_what_was_read_before_an_outage_is_answered_at_once_though_another_took_the_line_over(
    settings: Any, client: redis.Redis, line: str
) -> None:
    worker = Worker(settings(line))
    worker.startup()
    try:
        worker._recover()
        worker._turn()
        streams = LineStreams(client, line)
        send(client, line, 1, 4)
        read_new(client, {streams: 1}, worker.settings.worker.name)  # as by a read whose reply was lost
        streams.acquire("station-2#x", 9, take_over=worker.settings.worker.name)
        worker._recover()

        def turned() -> bool:
            worker._turn()
            return len(results(client, line)) == 4

        eventually(turned, seconds=worker.settings.streams.claim_seconds / 2)
    finally:
        worker.drain()
        worker.shutdown()
