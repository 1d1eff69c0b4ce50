"""A replica that is promoted without the last writes: the line goes back with it, and on from there."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.processes import (
    committed,
    done,
    patient,
    play,
    results,
    running_worker,
    state,
    write_config,
)
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually
from tests.worker.playing import answered, send
from tests.worker.turning import running
from worker.streams.line_streams import LineStreams, newest_id


def progress(client: redis.Redis, line: str) -> int:
    return int(state(client, line).get("progress", "").partition("/")[0] or 0)


@pytest.fixture
def replica(private_redis: PrivateRedis, tmp_path: Path) -> Iterator[PrivateRedis]:
    """A server that has all that the other has."""
    folder = tmp_path / "replica"
    folder.mkdir()
    server = PrivateRedis(folder)
    redis.Redis(port=server.port).replicaof("127.0.0.1", str(private_redis.port))
    yield server
    server.kill()


@pytest.fixture
def way(private_redis: PrivateRedis) -> Iterator[Proxy]:
    proxy = Proxy(private_redis.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("kept", ["no version", "none of the versions", "an older version"])
def test_what_the_replica_has_is_answered_once_and_learned_once(
    private_redis: PrivateRedis, replica: PrivateRedis, way: Proxy, line: str, tmp_path: Path, kept: str
) -> None:
    master, follower = (patient(server.url) for server in (private_redis, replica))
    every = {"no version": 1000, "none of the versions": 50, "an older version": 16}[kept]  # images
    config = write_config(tmp_path, way.url, line, tmp_path, learn=1000, every_images=every, every_seconds=1000)
    with running_worker(config) as worker:
        play(master, line, 0, 40)
        eventually(lambda: done(master, line, 40))
        eventually(lambda: done(follower, line, 40))
        eventually(lambda: bool(state(follower, line).get("model")) == (kept == "an older version"))
        follower.replicaof("NO", "ONE")
        play(master, line, 40, 60)  # these writes are lost
        eventually(lambda: done(master, line, 60) and progress(master, line) == 57)
        lost = state(master, line)["model"]
        assert bool(lost) == (kept != "no version")
        way.cut()
        way.target = replica.port
        private_redis.kill()
        accepted = way.accepted
        way.mend()
        eventually(lambda: way.accepted > accepted and int(state(follower, line)["epoch"]) > 1)  # it has noticed
        play(follower, line, 60, 100)
        eventually(lambda: done(follower, line, 80))
        eventually(lambda: progress(follower, line) == 77)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    times = Counter(result["id"] for result in results(follower, line))
    poisoned = {10, 30, 90}
    assert times == {str(i): 1 for i in [*range(40), *range(60, 100)] if i not in poisoned}
    found = committed(follower, line, tmp_path).metadata
    assert found["images_learned"] + found["images_quarantined"] == 77
    pins = [path.stem for path in tmp_path.rglob("*.pin")]
    assert pins == [lost] * (kept == "none of the versions")


@contextmanager
def held(at: Any, name: str) -> Iterator[None]:
    """The worker stands before the next call of a method while the block runs; the block begins once it does."""
    at_work, mended, goes_on = threading.Event(), threading.Event(), getattr(at, name)

    def waits(*given: Any, **named: Any) -> Any:
        at_work.set()
        assert mended.wait(60)
        return goes_on(*given, **named)

    setattr(at, name, waits)
    assert at_work.wait(60)
    yield
    mended.set()


@pytest.mark.parametrize(("where", "new_come_first"), [("fleet.keep", False), ("learning._keep", True)])
def test_a_replica_that_took_over_between_two_commands_is_noticed_all_the_same(
    private_redis: PrivateRedis,
    replica: PrivateRedis,
    way: Proxy,
    line: str,
    settings: Any,
    tmp_path: Path,
    where: str,
    new_come_first: bool,
) -> None:
    """No command meets the cut: redis-py makes the connection anew, and says nothing."""
    master, follower = (patient(server.url) for server in (private_redis, replica))
    no_version = {"directory": tmp_path / "snapshots", "every_images": 1000, "every_seconds": 1000}
    with running(settings(line, url=way.url, learning={"images": 1000}, snapshots=no_version)) as worker:
        send(master, line, 1, 20)
        answered(follower, line, 20)
        eventually(lambda: progress(follower, line) == 20)
        follower.replicaof("NO", "ONE")
        send(master, line, 21, 40)  # these writes are lost
        answered(master, line, 40)
        eventually(lambda: progress(master, line) == 40)
        part, _, method = where.partition(".")
        with held(getattr(worker, part), method):
            way.cut()
            way.target = replica.port
            if new_come_first:
                send(follower, line, 41, 60)
            way.mend()
        eventually(lambda: int(state(follower, line)["epoch"]) > 1)
        if not new_come_first:
            send(follower, line, 41, 60)
        assert sorted(int(each["id"]) for each in answered(follower, line, 40)) == [*range(1, 21), *range(41, 61)]
        eventually(lambda: worker.keepers[line].line.applied_through == newest_id(follower, f"mhpc:{{{line}}}:images"))
        assert worker.keepers[line].line.learner.images_seen_ == 40
        assert worker.metrics.registry.get_sample_value("mhpc_redis_reconnects_total") == 0  # nothing was lost on it


def test_a_keeper_whose_lease_lapsed_commits_nothing_to_a_replica_that_was_not_told_who_took_it(
    private_redis: PrivateRedis,
    replica: PrivateRedis,
    way: Proxy,
    line: str,
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"streams.line_streams.LEASE_ENDS_MS": 2000, "keeping.lease.LAPSE_SECONDS": 1.8}.items():
        monkeypatch.setattr(f"worker.{name}", value)
    monkeypatch.setattr("worker.keeping.lease.RENEW_SECONDS", 0.6)
    master, follower = (patient(server.url) for server in (private_redis, replica))
    snapshots = {"directory": tmp_path / "snapshots", "every_images": 20, "every_seconds": 1000}
    with running(settings(line, url=way.url, learning={"images": 1000}, snapshots=snapshots)) as worker:
        send(master, line, 1, 20)
        answered(follower, line, 20)
        eventually(lambda: progress(follower, line) == 20 and state(follower, line).get("model"))
        follower.replicaof("NO", "ONE")
        send(master, line, 21, 28)  # these writes are lost, and who takes the lease
        answered(master, line, 28)
        eventually(lambda: progress(master, line) == 28)
        with held(worker.learning, "_keep"):
            eventually(lambda: LineStreams(master, line).acquire("other#1", 0)[0] == 2)
            worker.keepers[line].schedule.images = 1000  # it is to commit next
            way.cut()
            way.target = replica.port
            send(follower, line, 41, 60)
            way.mend()
        eventually(lambda: int(state(follower, line)["epoch"]) > 1000)
        eventually(lambda: worker.keepers[line].line.applied_through == newest_id(follower, f"mhpc:{{{line}}}:images"))
        assert worker.keepers[line].line.learner.images_seen_ == 40
