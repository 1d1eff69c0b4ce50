"""What the fault tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.worker.faults.processes import (
    IMAGES,
    assert_each_answered_once,
    committed,
    finish,
    patient,
    play,
    running_worker,
    write_config,
)
from tests.worker.faults.proxy import Proxy
from tests.worker.faults.servers import DurableRedis
from worker.snapshots import Snapshot


@pytest.fixture(scope="session")
def unbroken_run(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """What a worker commits that nothing happened to."""
    folder, line = tmp_path_factory.mktemp("unbroken"), f"unbroken-{tmp_path_factory.getbasetemp().name}"
    client = patient(redis_url)
    play(client, line, 0, IMAGES)
    with running_worker(write_config(folder, redis_url, line, folder)) as worker:
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    return committed(client, line, folder)


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A way to the server that all tests share."""
    port = redis.Redis.from_url(redis_url).connection_pool.connection_kwargs["port"]
    proxy = Proxy(port)
    yield proxy
    proxy.close()


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[DurableRedis]:
    """A server that a test may kill, and that then has all it ever confirmed."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = DurableRedis(folder)
    yield server
    server.kill()
