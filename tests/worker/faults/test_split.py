"""A network that splits: who is cut off believes for a while that it leads, and another does."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually
from tests.worker.playing import answered, results, send
from tests.worker.turning import Run, get
from worker.daemon import Worker
from worker.metrics import OF_THE_KEEPER
from worker.streams.line_streams import LineStreams

LEASE_SECONDS = 10.0  # a busy machine stands still for seconds, and only who is cut off is to lose its line
UNDER_WAY = {  # by the arguments that tell it
    "an answer": (b"EVALSHA", b"mhpc:{%s}:scores"),
    "a reading to answer": (b"XREADGROUP", b"mhpc:{%s}:images"),
    "a reading to learn": (b"EVALSHA", b"read"),
    "a commit": (b"EVALSHA", b"commit"),
    "an acknowledgement": (b"EVALSHA", b"ack"),
}


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.streams.line_streams.LEASE_ENDS_MS", int(LEASE_SECONDS * 1000))
    monkeypatch.setattr("worker.keeping.lease.RENEW_SECONDS", 1.0)
    monkeypatch.setattr("worker.keeping.lease.LAPSE_SECONDS", 0.9 * LEASE_SECONDS)
    monkeypatch.setattr("worker.keeping.keeper.ACQUIRE_SECONDS", 0.3)
    monkeypatch.setattr("worker.answering.intake.CLAIM_SECONDS", 0.5)


@pytest.fixture
def way(redis_url: str) -> Iterator[Proxy]:
    proxy = Proxy(redis.Redis.from_url(redis_url).connection_pool.connection_kwargs["port"])
    yield proxy
    proxy.close()


def keeps(worker: Worker, line: str) -> bool:
    """As its metric says."""
    return bool(worker.metrics.registry.get_sample_value("mhpc_line_keeper", {"line": line}))


def told_of(worker: Worker, line: str) -> dict[str, float]:
    """What it shows of what waits, and of what only a keeper knows."""
    names = [f"mhpc_{name}" for name in (*OF_THE_KEEPER, "stream_lag_entries", "pending_entries")]
    samples = [sample for family in worker.metrics.registry.collect() for sample in family.samples]
    owed = worker.metrics.registry.get_sample_value("mhpc_snapshot_owed_seconds", {"line": line})
    told = {sample.name: sample.value for sample in samples if sample.name in names and sample.labels["line"] == line}
    return told | ({"owed": owed} if owed else {})


@pytest.mark.parametrize("what", UNDER_WAY)
def test_what_a_keeper_had_under_way_when_it_was_cut_off_comes_too_late_and_each_image_counts_once(
    run: Run,
    settings: Any,
    client: redis.Redis,
    redis_url: str,
    line: str,
    way: Proxy,
    what: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def worker(name: str, url: str) -> Worker:
        about = {"name": name, "device": "cpu"}
        told = {"learning": {"images": 1000, "converge": False}, "streams": {"claim_seconds": 1.0}}
        return run(settings(line, url=url, worker=about, **told))

    streams = LineStreams(client, line)
    first = worker("first", f"{way.url}?socket_timeout=1.5")
    send(client, line, 1, 8)
    answered(client, line, 8)
    eventually(lambda: keeps(first, line))
    second = worker("second", redis_url)
    command, argument = UNDER_WAY[what]
    way.hold(command, argument.replace(b"%s", line.encode()))
    number = 8
    while not way.holds:  # the other may have been the one who read it
        send(client, line, number + 1, number + 4)
        number += 4
        answered(client, line, number - 4)
    eventually(lambda: "Redis is not reached" in get(first, "/readyz")[1])
    before = int(streams.state()["epoch"])
    eventually(lambda: keeps(second, line))
    assert not keeps(first, line)  # by its own clock it leads no more
    eventually(lambda: told_of(first, line) == {})  # what waits it does not know, and the rest is the other's to tell
    assert int(streams.state()["epoch"]) == before + 1
    send(client, line, number + 1, number + 8)
    answered(client, line, number + 8)
    version = eventually(lambda: model if (model := streams.state()["model"]) > f"{before + 1:010}" else "")
    way.mend()
    eventually(lambda: get(first, "/readyz") == (200, "ok\n"))
    assert first.keepers[line].epoch == 0
    send(client, line, number + 9, number + 16)
    ids = [int(each["id"]) for each in answered(client, line, number + 16)]
    assert sorted(ids) == [*range(1, number + 17)]
    eventually(lambda: second.keepers[line].line.learner.images_seen_ == number + 16)
    assert (int(streams.state()["epoch"]), streams.state()["holder"]) == (before + 1, second.holder)
    assert streams.state()["model"] >= version
    assert len(results(client, line)) == number + 16
    if what != "a commit":  # which is taken for lost at once
        assert re.search("line lost to another keeper.*second took over meanwhile", capfd.readouterr().out)
