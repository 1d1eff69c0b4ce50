"""A worker whose stream somebody deletes, since its ids were of a clock that was ahead."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.helpers import eventually, item, message
from tests.worker.playing import answered, in_phase, results, send
from tests.worker.turning import Run, get, running
from worker.daemon import Worker
from worker.line import SCORING
from worker.refusals import QUIET_SECONDS
from worker.streams.control import send as command
from worker.streams.control import wait_for_reply
from worker.streams.line_streams import LineStreams


def test_a_worker_notices_by_itself_and_answers_all_that_is_new_after_a_resync(
    run: Run, settings: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.keeping.upkeep.TRIM_SECONDS", 0.1)
    worker, streams = run(settings(line)), LineStreams(client, line)
    ahead = int(time.time() * 1000) + 24 * 3600 * 1000
    for number in range(1, 37):
        client.xadd(streams.images, {"batch": message(item(str(number)))}, id=f"{ahead + number}-0")
    answered(client, line, 36)
    eventually(lambda: in_phase(client, line, SCORING) and streams.state().get("done_through") == f"{ahead + 36}-0")
    client.delete(streams.images)
    send(client, line, 37, 48, batch=1)
    eventually(lambda: worker.keepers[line].stopped)
    status, text = get(worker, "/readyz")
    assert (status, f"mhpc-worker control {line} resync" in text) == (503, True)
    send(client, line, 49, 60, batch=1)
    reply = wait_for_reply(streams, command(streams, "resync", {}, "ann"), 30)
    assert reply is not None
    assert reply.ok
    send(client, line, 61, 64, batch=1)
    answered(client, line, 64)
    eventually(lambda: streams.state().get("done_through") == streams.last_id())
    assert get(worker, "/readyz") == (200, "ok\n")
    assert sorted(int(result["id"]) for result in results(client, line)) == list(range(1, 65))


def test_a_line_that_was_refused_and_is_stopped_goes_on_in_the_log_only_once_it_does(
    settings: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, clock = LineStreams(client, line), [1000.0]
    monkeypatch.setattr("worker.refusals.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with running(settings(line)):
        send(client, line, 1, 8)
        answered(client, line, 8)
        eventually(lambda: streams.state().get("applied_through") == streams.last_id())
    client.delete(streams.images)
    client.xadd(streams.images, {"batch": message(item())}, id="5-0")
    worker = Worker(settings(line))
    worker.startup()

    def turned() -> tuple[bool, int]:
        worker._turn()
        return worker.keepers[line].stopped, worker.keepers[line].epoch

    try:
        worker._recover()
        worker.refusals.add(line, "NOGROUP No such key")
        clock[0] += QUIET_SECONDS
        with capture_logs() as logs:
            eventually(lambda: turned()[0])
            turned()
        assert "the line goes on" not in [entry["event"] for entry in logs]
        command(streams, "resync", {}, "ann")
        with capture_logs() as logs:
            eventually(lambda: turned()[1])
            turned()
        assert [entry["event"] for entry in logs].count("the line goes on") == 1
    finally:
        worker.drain()
        worker.shutdown()
