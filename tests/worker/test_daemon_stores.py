"""A whole worker over a disk that hangs, and an object store that hangs, is away, and comes back."""

import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tests.worker.faulty import Faults
from tests.worker.helpers import eventually
from tests.worker.playing import answered, in_phase, send
from tests.worker.station import State
from tests.worker.turning import Run, get
from worker.answering.judging import Judging
from worker.engine import Engine
from worker.keeping.lease import RENEW_SECONDS
from worker.line import SCORING
from worker.settings import Settings
from worker.snapshots import SnapshotStore, stem_of
from worker.streams.line_streams import LineStreams


@pytest.fixture
def stored(settings: Any, tmp_path: Path, faults: Faults) -> Any:
    url = f"faulty://{uuid.uuid4().hex}"

    def stored(line: str, machine: str, name: str = "station-1", seconds: float = 60.0) -> Settings:
        snapshots = {"directory": url, "cache": tmp_path / machine, "every_images": 8, "every_seconds": 0.5}
        own = {"snapshots": {**snapshots, "timeout_seconds": seconds}, "worker": {"name": name}}
        made: Settings = settings(line, **own)
        return made

    return stored


def test_a_disk_that_hangs_holds_up_no_batch_that_is_under_way(
    run: Run, settings: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, hangs, may_go_on = SnapshotStore.put, threading.Event(), threading.Event()

    def slow(store: SnapshotStore, stem: str, content: bytes) -> None:
        if threading.current_thread().name == "store":
            hangs.set()
            may_go_on.wait(60)
        put(store, stem, content)

    monkeypatch.setattr(SnapshotStore, "put", slow)
    run(settings(line, learning={"images": 4000, "converge": False}))
    with monkeypatch.context() as busy:
        busy.setattr(Judging, "under_way", True)  # whenever a version is due
        send(client, line, 1, 40)
        assert len(answered(client, line, 40)) == 40
        assert hangs.wait(60)
        send(client, line, 41, 80)
        assert len(answered(client, line, 80)) == 80
    streams = LineStreams(client, line)
    assert streams.state()["applied_through"] != streams.last_id()
    may_go_on.set()
    eventually(lambda: streams.state()["applied_through"] == streams.last_id())


def test_a_store_that_hangs_holds_up_neither_answers_nor_the_lease(
    run: Run, stored: Any, client: redis.Redis, line: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("worker.keeping.lease.time", SimpleNamespace(monotonic=lambda: clock[0]))
    worker, streams = run(stored(line, "a")), LineStreams(client, line)
    send(client, line, 1, 8)
    eventually(lambda: streams.state().get("applied_through") == streams.last_id())
    faults.open.clear()
    model = streams.state()["model"]
    send(client, line, 9, 40)
    assert len(answered(client, line, 40)) == 40
    lease = worker.keepers[line].lease
    for _ in range(4):  # longer than a lease, by its clock
        clock[0] += RENEW_SECONDS
        eventually(lambda: lease._renew_at > clock[0])  # it was renewed
        assert lease.held
    assert (worker.keepers[line].epoch, streams.state()["model"]) == (1, model)
    assert get(worker, "/healthz") == (200, "ok\n")
    assert "mhpc_snapshot_owed_seconds" in get(worker, "/metrics")[1]
    faults.open.set()
    eventually(lambda: in_phase(client, line, SCORING))
    assert worker.keepers[line].line.learner.images_seen_ == 16


def test_who_starts_while_the_store_is_away_answers_by_what_its_machine_has(
    run: Run, stored: Any, client: redis.Redis, line: str, faults: Faults
) -> None:
    first = run(stored(line, "a"))
    send(client, line, 1, 40)
    answered(client, line, 40)
    eventually(lambda: in_phase(client, line, SCORING))
    version = LineStreams(client, line).state()["model"]
    eventually(lambda: first.keepers[line].model == version)
    faults.away = True
    second = run(stored(line, "a", "station-2"))
    assert eventually(lambda: second.keepers[line].line.serving.model) == version


def test_a_line_whose_version_cannot_be_had_waits_and_the_worker_says_why(
    run: Run, stored: Any, client: redis.Redis, line: str, faults: Faults
) -> None:
    client.hset(LineStreams(client, line).state_key, mapping={"model": "0000000001-0000000001", "epoch": "1"})
    faults.away = True
    worker = run(stored(line, "c"))
    send(client, line, 1, 4)
    told = "the store of its versions cannot be asked"  # until it is asked again
    text = eventually(lambda: text if told in (text := get(worker, "/readyz")[1]) else "")
    assert "nobody answers at faulty://" in text
    assert LineStreams(client, line).client.xlen(f"mhpc:{{{line}}}:scores") == 0
    client.delete(LineStreams(client, line).state_key)  # a person learns anew
    faults.away = False
    assert len(answered(client, line, 4)) == 4
    eventually(lambda: get(worker, "/readyz")[0] == 200)


def test_a_version_that_is_whole_and_no_lines_is_its_lines_trouble_alone(
    run: Run,
    settings: Any,
    client: redis.Redis,
    line: str,
    tmp_path: Path,
    engine: Engine,
    states: dict[str, State],
) -> None:
    other, stem = f"{line}-other", stem_of(1, 1)
    tensors, metadata = states[SCORING]
    store = SnapshotStore(tmp_path / "snapshots", line)
    store.write(stem, {}, {**metadata, "fingerprint": engine.fingerprint})
    client.hset(LineStreams(client, line).state_key, mapping={"model": stem, "epoch": "1"})
    worker = run(settings(line, other))
    for name in (line, other):
        send(client, name, 1, 8)
    assert answered(client, other, 8)
    eventually(lambda: f"{stem} is whole, but no line can go on from it" in get(worker, "/readyz")[1])
    store.write(stem, tensors, {**metadata, "fingerprint": engine.fingerprint})
    assert answered(client, line, 8)
    eventually(lambda: get(worker, "/readyz")[0] == 200)
