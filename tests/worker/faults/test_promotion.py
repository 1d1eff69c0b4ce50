"""A replica that is promoted without the last writes: the line goes back with it, and on from there."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
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


def test_a_replica_that_took_over_between_two_commands_is_noticed_all_the_same(
    private_redis: PrivateRedis, replica: PrivateRedis, way: Proxy, line: str, settings: Any, tmp_path: Path
) -> None:
    """No command meets the cut: redis-py makes the connection anew, and says nothing."""
    master, follower = (patient(server.url) for server in (private_redis, replica))
    at_work, mended = threading.Event(), threading.Event()
    no_version = {"directory": tmp_path / "snapshots", "every_images": 1000, "every_seconds": 1000}
    with running(settings(line, url=way.url, learning={"images": 1000}, snapshots=no_version)) as worker:
        send(master, line, 1, 20)
        answered(follower, line, 20)
        eventually(lambda: progress(follower, line) == 20)
        follower.replicaof("NO", "ONE")
        send(master, line, 21, 40)  # these writes are lost
        answered(master, line, 40)
        eventually(lambda: progress(master, line) == 40)
        lets_go = worker.fleet.keep

        def works(*of_a_turn: Any) -> None:
            at_work.set()
            assert mended.wait(60)
            lets_go(*of_a_turn)

        worker.fleet.keep = works  # type: ignore[method-assign, assignment]
        assert at_work.wait(60)
        way.cut()
        way.target = replica.port
        way.mend()
        mended.set()
        eventually(lambda: int(state(follower, line)["epoch"]) > 1)
        send(follower, line, 41, 60)
        assert sorted(int(each["id"]) for each in answered(follower, line, 40)) == [*range(1, 21), *range(41, 61)]
        eventually(lambda: progress(follower, line) == 40)
        assert worker.metrics.registry.get_sample_value("mhpc_redis_reconnects_total") == 0  # nothing was lost on it
