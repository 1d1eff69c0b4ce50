"""A replica that is promoted without the last writes: the line goes back with it, and on from there."""

import signal
from collections import Counter
from pathlib import Path

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.processes import committed, done, play, results, running_worker, state, write_config
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually


def progress(client: redis.Redis, line: str) -> int:
    return int(state(client, line).get("progress", "").partition("/")[0] or 0)


@pytest.mark.parametrize("kept", ["no version", "an older version"])
def test_what_the_replica_has_is_answered_once_and_learned_once(
    private_redis: PrivateRedis, line: str, tmp_path: Path, kept: str
) -> None:
    folder = tmp_path / "replica"
    folder.mkdir()
    replica, proxy = PrivateRedis(folder), Proxy(private_redis.port)
    master, follower = (redis.Redis(port=server.port, protocol=2) for server in (private_redis, replica))
    follower.replicaof("127.0.0.1", private_redis.port)
    every = 16 if kept == "an older version" else 1000  # a snapshot behind the replica's back, or none
    try:
        config = write_config(tmp_path, proxy.url, line, tmp_path, learn=1000, every_images=every)
        with running_worker(config) as worker:
            play(master, line, 0, 40)
            eventually(lambda: done(master, line, 40))
            eventually(lambda: done(follower, line, 40))
            follower.replicaof("NO", "ONE")
            play(master, line, 40, 60)  # these writes are lost
            eventually(lambda: done(master, line, 60) and progress(master, line) == 57)
            proxy.cut()
            proxy.target = replica.port
            private_redis.kill()
            accepted = proxy.accepted
            proxy.mend()
            eventually(lambda: proxy.accepted > accepted and int(state(follower, line)["epoch"]) > 1)  # it has noticed
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
    finally:
        proxy.close()
        replica.kill()
