"""Workers of several releases in one fleet."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.helpers import eventually
from tests.worker.playing import answered, send
from tests.worker.turning import Run, get
from worker import fleet
from worker.daemon import Worker
from worker.settings import LINES_KEY, WORKERS_KEY
from worker.snapshots import VERSION, SnapshotStore
from worker.streams.line_streams import LineStreams


@pytest.fixture
def server(private_redis: PrivateRedis) -> Any:
    return redis.Redis(port=private_redis.port, protocol=2)


@pytest.fixture
def member(private_redis: PrivateRedis, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings of a worker of the fleet."""
    for name in ("fleet.LOOK_SECONDS", "keeping.keeper.ACQUIRE_SECONDS"):
        monkeypatch.setattr(f"worker.{name}", 0.2)
    return lambda name: settings(url=private_redis.url, worker={"name": name, "fleet": True})


def kept(worker: Worker) -> set[str]:
    return {name for name, keeper in dict(worker.keepers).items() if keeper.epoch}


def test_a_worker_of_another_release_has_its_share_and_is_named(
    run: Run, server: Any, member: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it says of itself has a key that this release does not know, and a digest of its own."""
    for name in ("press-1", "press-2", "press-3"):
        server.hset(LINES_KEY, name, "{}")
    about = {"at": server.time()[0] + 15, "capacity": 1, "settings": "of 9.0", "a key of release 9": [1]}
    server.hset(WORKERS_KEY, "next", json.dumps(about))
    streams = LineStreams(server, "press-3")
    streams.ensure_groups()
    assert streams.acquire("next#1", 0)[0] == 1
    streams.show(1, {"phase": "a phase of release 9"})
    worker = run(member("w-1"))
    eventually(lambda: kept(worker) == {"press-1", "press-2"})
    assert worker.fleet.share == 2
    for name in ("press-1", "press-2", "press-3"):  # it answers what the other keeps, too
        send(server, name, 1, 4)
        answered(server, name, 4)
    assert get(worker, "/readyz") == (200, "ok\n")
    said = [
        text for text in capfd.readouterr().out.splitlines() if "is another release, or configured otherwise" in text
    ]
    assert len(said) == 1
    assert "worker=next" in said[0]


def test_what_a_restart_alone_takes_over_is_not_announced_before(run: Run, server: Any, member: Any) -> None:
    def announced() -> str:
        about = json.loads(server.hget(WORKERS_KEY, "w-1") or "{}")
        return str(about.get("settings", ""))

    server.hset(LINES_KEY, "press-1", "{}")
    worker = run(member("w-1"))
    before = eventually(announced)
    new = worker.settings.model_copy(
        update={"model": worker.settings.model.model_copy(update={"pca_variance_ratio": 0.8, "bank_size": 70})}
    )
    worker.fleet.take_over(new)
    assert (worker.fleet.settings.model.pca_variance_ratio, worker.fleet.settings.model.bank_size) == (0.9, 70)
    eventually(lambda: announced() != before)  # of the bank size, which takes no restart
    assert announced() == fleet._digest(worker.fleet.settings) != fleet._digest(new)


def test_a_version_of_a_newer_format_is_left_to_those_who_can_load_it(
    run: Run, server: Any, member: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("press-1", "press-2"):
        server.hset(LINES_KEY, name, "{}")
    worker = run(member("w-1"))
    eventually(lambda: kept(worker) == {"press-1", "press-2"})
    send(server, "press-1", 1, 8)
    answered(server, "press-1", 8)  # before the next release has the line: what is left then waits
    model = eventually(lambda: LineStreams(server, "press-1").state().get("model", ""))
    store = SnapshotStore(tmp_path / "snapshots", "press-1")
    snapshot = store.load(model)
    streams = LineStreams(server, "press-1")
    assert streams.acquire("next#1", 0, take_over="w-1")[0] == 2  # a worker of the next release takes over
    with monkeypatch.context() as newer:
        newer.setattr("worker.snapshots.VERSION", 99)
        store.write("0000000002-0000000001", snapshot.tensors, {**snapshot.metadata, "epoch": 2})
    streams.commit(2, {"model": "0000000002-0000000001"})
    told = f"has format 99, this release reads {VERSION}"
    assert "line press-1: its version cannot be loaded: " in eventually(
        lambda: text if told in (text := get(worker, "/readyz")[1]) else ""
    )
    streams.release(2)  # it dies
    send(server, "press-1", 9, 12)
    send(server, "press-2", 1, 8)
    answered(server, "press-2", 8)
    eventually(lambda: worker.fleet.share == 1 and kept(worker) == {"press-2"})
    assert server.get(streams.lease) is None  # nobody takes it who cannot load its version
    assert server.xlen(streams.scores) == 8  # nor answers by an older one
